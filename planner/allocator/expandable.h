/* Expandable segments: expandable.py for replay.c. */

#ifndef QPLAN_EXPANDABLE_H
#define QPLAN_EXPANDABLE_H

#include "blocks.h"

static int64_t round_up(int64_t size, int64_t page) { return (size + page - 1) / page * page; }

static int remember(Allocator *a, Pool *pool, int64_t index)
{
    return insert(&pool->unmapped, 0, a->blocks[index].address, index);
}

static void forget_unmapped(Allocator *a, Pool *pool, int64_t index)
{
    take(&pool->unmapped, search(&pool->unmapped, 0, a->blocks[index].address));
}

/* A block takes its successor in. */
static void absorb(Allocator *a, int64_t index)
{
    Block *block = &a->blocks[index];
    int64_t gone = block->next;
    block->size += a->blocks[gone].size;
    block->next = a->blocks[gone].next;
    if (block->next != NONE)
        a->blocks[block->next].previous = index;
    forget(a, gone);
}

/* Keep size bytes of a block; what follows them becomes a block in the given state. */
static int cut(Allocator *a, int64_t index, int64_t size, int state, int64_t *tail)
{
    const Block block = a->blocks[index];
    *tail = new_block(a, block.address + size, block.size - size, index, block.next);
    if (*tail == NONE)
        return NO_MEMORY;
    a->blocks[*tail].state = state;
    if (block.next != NONE)
        a->blocks[block.next].previous = *tail;
    a->blocks[index].next = *tail;
    a->blocks[index].size = size;
    return DONE;
}

/* get_free_block, expandable_size */
static int64_t expandable_size(const Allocator *a, int64_t index)
{
    const Block *block = &a->blocks[index];
    int grows = block->next != NONE && a->blocks[block->next].state == UNMAPPED;
    return block->size + (grows ? a->blocks[block->next].size : 0);
}

static int64_t best_fit(const Allocator *a, const List *free, int64_t i)
{
    while (i + 1 < free->count && expandable_size(a, free->entries[i + 1].block) < expandable_size(a, free->entries[i].block))
        i++;
    return i;
}

/* map_block: put memory behind the first bytes of an unmapped block; index becomes the cached block that they are part of. */
static int map(Allocator *a, Pool *pool, int64_t *index, int64_t size)
{
    int64_t block = *index, nbytes = round_up(size, pool->page), other;
    if (claim(a, nbytes) != DONE)
        return FULL;
    forget_unmapped(a, pool, block);
    if (nbytes < a->blocks[block].size) {
        if (cut(a, block, nbytes, UNMAPPED, &other) != DONE || remember(a, pool, other) != DONE)
            return NO_MEMORY;
    }
    a->blocks[block].state = FREE;
    other = a->blocks[block].next;
    if (other != NONE && a->blocks[other].state == FREE) {
        drop(&pool->free, &a->blocks[other]);
        absorb(a, block);
    }
    other = a->blocks[block].previous;
    if (other != NONE && a->blocks[other].state == FREE) {
        drop(&pool->free, &a->blocks[other]);
        absorb(a, other);
        block = other;
    }
    *index = block;
    return put(&pool->free, &a->blocks[block], block);
}

/* find_expandable_block: the first of a row of blocks, cached or unmapped, with room for size bytes. */
static int find_room(Allocator *a, Pool *pool, int64_t size, int64_t *index)
{
    int64_t i, address, nbytes;
    for (i = 0; i < pool->unmapped.count; i++) {
        int64_t first = pool->unmapped.entries[i].block, previous = a->blocks[first].previous, room = 0, block;
        if (previous != NONE && a->blocks[previous].state != LIVE)
            first = previous;
        for (block = first; room < size && block != NONE && a->blocks[block].state != LIVE; block = a->blocks[block].next)
            room += a->blocks[block].size;
        if (room >= size) {
            *index = first;
            return DONE;
        }
    }
    address = round_up(a->next_address + pool->page, pool->page);
    nbytes = round_up(a->range > size ? a->range : size, pool->page);
    a->next_address = address + nbytes;
    *index = new_block(a, address, nbytes, NONE, NONE);
    if (*index == NONE)
        return NO_MEMORY;
    a->blocks[*index].state = UNMAPPED;
    return remember(a, pool, *index);
}

/* try_allocate_expandable_block: a block in no list; what was mapped before the card filled up stays mapped. */
static int expand(Allocator *a, Pool *pool, int64_t size, int64_t *index)
{
    int status = find_room(a, pool, size, index);
    if (status == DONE && a->blocks[*index].state == UNMAPPED) {
        int64_t room = a->blocks[*index].size;
        status = map(a, pool, index, room < size ? room : size);
    }
    while (status == DONE && a->blocks[*index].size < size) {
        int64_t lacks = size - a->blocks[*index].size, room;
        *index = a->blocks[*index].next;
        room = a->blocks[*index].size;
        status = map(a, pool, index, lacks < room ? lacks : room);
    }
    if (status == DONE)
        drop(&pool->free, &a->blocks[*index]);
    return status;
}

/* unmap_block: take the memory from behind the whole pages of a cached block. */
static int unmap(Allocator *a, Pool *pool, int64_t block)
{
    int64_t address = a->blocks[block].address, stop = address + a->blocks[block].size, other;
    int64_t begin = round_up(address, pool->page), end = stop / pool->page * pool->page;
    if (begin >= end)
        return DONE;
    drop(&pool->free, &a->blocks[block]);
    if (end < stop && (cut(a, block, end - address, FREE, &other) != DONE || put(&pool->free, &a->blocks[other], other) != DONE))
        return NO_MEMORY;
    if (begin > address) {
        if (cut(a, block, begin - address, FREE, &other) != DONE || put(&pool->free, &a->blocks[block], block) != DONE)
            return NO_MEMORY;
        block = other;
    }
    a->blocks[block].state = UNMAPPED;
    a->reserved -= end - begin;
    other = a->blocks[block].next;
    if (other != NONE && a->blocks[other].state == UNMAPPED) {
        forget_unmapped(a, pool, other);
        absorb(a, block);
    }
    other = a->blocks[block].previous;
    if (other != NONE && a->blocks[other].state == UNMAPPED) {
        absorb(a, other);
        block = other;
    } else if (remember(a, pool, block) != DONE) {
        return NO_MEMORY;
    }
    if (a->blocks[block].previous == NONE && a->blocks[block].next == NONE) { /* the whole range */
        forget_unmapped(a, pool, block);
        forget(a, block);
    }
    return DONE;
}

/* release_blocks: give back every page that no live block touches. */
static int unmap_all(Allocator *a, Pool *pool)
{
    int64_t count = pool->free.count, i;
    int64_t *cached = malloc((size_t)(count ? count : 1) * sizeof(int64_t));
    int status = DONE;
    if (!cached)
        return NO_MEMORY;
    for (i = 0; i < count; i++)
        cached[i] = pool->free.entries[i].block;
    for (i = 0; i < count && status == DONE; i++)
        status = unmap(a, pool, cached[i]);
    free(cached);
    return status;
}

#endif
