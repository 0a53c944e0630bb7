/*
 * A whole run through PyTorch's caching allocator where it takes the best fit and splits every block.
 *
 * The same decisions as caching.py, fixed.py and expandable.py make, which are the ones to read: this file is there because a replay of an 80-layer model
 * has 140,000 of them. tests/allocator/test_native.py holds it to them.
 *
 * Source: torch@2.13.0, c10/cuda/CUDACachingAllocator.cpp, as there.
 */

#include "expandable.h"

enum { RESERVED_PEAK, ALLOCATED_PEAK, NUM_FLUSHES, FAILED_AT, ALLOCATED, RESERVED };

/* get_allocation_size */
static int64_t segment_size(const Allocator *a, int64_t size)
{
    if (size <= SMALL_SIZE)
        return SMALL_SEGMENT;
    if (size < MIN_LARGE_ALLOCATION)
        return a->large_segment;
    return (size + LARGE_ROUNDING - 1) / LARGE_ROUNDING * LARGE_ROUNDING;
}

/* release_blocks: give every segment back that is wholly cached. */
static void release_all(Allocator *a, List *list)
{
    int64_t kept = 0, i;
    for (i = 0; i < list->count; i++) {
        const Entry entry = list->entries[i];
        const Block *block = &a->blocks[entry.block];
        if (block->previous == NONE && block->next == NONE) {
            a->reserved -= block->size;
            forget(a, entry.block);
        } else {
            list->entries[kept++] = entry;
        }
    }
    list->count = kept;
}

static int empty_cache(Allocator *a)
{
    int status;
    if (a->is_expandable) {
        status = unmap_all(a, &a->large);
        return status == DONE ? unmap_all(a, &a->small) : status;
    }
    release_all(a, &a->large.free);
    release_all(a, &a->small.free);
    return DONE;
}

/* alloc_block: a block in no list. */
static int obtain(Allocator *a, Pool *pool, int64_t size, int64_t *index)
{
    int64_t nbytes = segment_size(a, size);
    if (a->allowed >= 0 && a->reserved + nbytes > a->allowed)
        return FULL;
    if (a->is_expandable)
        return expand(a, pool, size, index);
    if (claim(a, nbytes) != DONE)
        return FULL;
    a->lowest -= nbytes;
    *index = new_block(a, a->lowest, nbytes, NONE, NONE);
    return *index == NONE ? NO_MEMORY : DONE;
}

/* The same, after giving back what is cached if there is no room; FULL if there is none then either. */
static int grow(Allocator *a, Pool *pool, int64_t size, int64_t *index)
{
    int status = obtain(a, pool, size, index);
    if (status == FULL) {
        a->num_flushes++;
        status = empty_cache(a);
        if (status == DONE)
            status = obtain(a, pool, size, index);
    }
    return status;
}

/* malloc, get_free_block, alloc_found_block */
static int allocate(Allocator *a, int64_t size, int64_t *index)
{
    Pool *pool = size <= SMALL_SIZE ? &a->small : &a->large;
    List *free = &pool->free;
    int64_t i = search(free, size, -1), rest;
    if (a->is_expandable)
        i = best_fit(a, free, i);
    if (i < free->count) {
        *index = free->entries[i].block;
    } else {
        int status = grow(a, pool, size, index);
        if (status != DONE)
            return status;
        i = NONE;
    }
    rest = a->blocks[*index].size - size;
    if (rest >= pool->least_rest) {
        int64_t following = a->blocks[*index].next;
        int64_t tail = new_block(a, a->blocks[*index].address + size, rest, *index, following);
        if (tail == NONE)
            return NO_MEMORY;
        if (following != NONE)
            a->blocks[following].previous = tail;
        a->blocks[*index].next = tail;
        a->blocks[*index].size = size;
        if (i != NONE)
            exchange(free, i, &a->blocks[tail], tail);
        else if (put(free, &a->blocks[tail], tail) != DONE)
            return NO_MEMORY;
    } else if (i != NONE) {
        take(free, i);
    }
    a->blocks[*index].state = LIVE;
    a->allocated += a->blocks[*index].size;
    if (a->allocated > a->allocated_peak)
        a->allocated_peak = a->allocated;
    return DONE;
}

/* free_block, try_merge_blocks */
static int free_block(Allocator *a, int64_t index)
{
    Block *block = &a->blocks[index];
    List *free = block->size <= SMALL_SIZE ? &a->small.free : &a->large.free;
    int64_t other, i = NONE; /* i: the entry of a neighbour, which the joined block takes over */
    block->state = FREE;
    a->allocated -= block->size;
    other = block->next;
    if (other != NONE && a->blocks[other].state == FREE) {
        i = find(free, &a->blocks[other]);
        block->size += a->blocks[other].size;
        block->next = a->blocks[other].next;
        if (block->next != NONE)
            a->blocks[block->next].previous = index;
        forget(a, other);
    }
    other = block->previous;
    if (other != NONE && a->blocks[other].state == FREE) {
        if (i != NONE)
            take(free, i);
        i = find(free, &a->blocks[other]);
        a->blocks[other].size += block->size;
        a->blocks[other].next = block->next;
        if (block->next != NONE)
            a->blocks[block->next].previous = other;
        forget(a, index);
        index = other;
    }
    if (i == NONE)
        return put(free, &a->blocks[index], index);
    exchange(free, i, &a->blocks[index], index);
    return DONE;
}

/*
 * Run births (an index) and deaths (its complement), until they end or one cannot be served.
 *
 * events: Those of each part, once.
 * parts, num_parts: Of each part three numbers: how many events it has, how often they come, and how far their storages shift each time.
 * flushes, num_flushes: Positions before which the cache is emptied, in order.
 * sizes, num_storages: Bytes of each storage.
 * capacity: Bytes that the card has; negative for no end.
 * allowed: Bytes that may be reserved of it; negative for all.
 * large_segment: Bytes of segments for 1 to 10 MiB.
 * range: Bytes of addresses of an expandable segment; negative for fixed segments.
 * held: Of each storage, the size of its block at the end, if it is alive; -1 else.
 * outcome: Six numbers, in the order of the enum above; FAILED_AT is -1 if all events were served.
 */
int qplan_replay(const int32_t *events, const int64_t *parts, int64_t num_parts, const int64_t *flushes, int64_t num_flushes,
                 const int64_t *sizes, int64_t num_storages, int64_t capacity, int64_t allowed, int64_t large_segment, int64_t range,
                 int64_t *held, int64_t *outcome)
{
    Allocator a;
    int64_t i, j, k, p, position = 0, f = 0, failed_at = -1;
    int status = DONE;
    int64_t *where = malloc((size_t)(num_storages ? num_storages : 1) * sizeof(int64_t)); /* a storage's block; NONE: none, or of size 0 */
    if (!where)
        return NO_MEMORY;
    memset(&a, 0, sizeof a);
    a.unused = NONE;
    a.small.least_rest = GRAIN;
    a.large.least_rest = range < 0 ? SMALL_SIZE + GRAIN : GRAIN;
    a.small.page = SMALL_SEGMENT;
    a.large.page = large_segment;
    a.is_expandable = range >= 0;
    a.range = range;
    a.capacity = capacity;
    a.allowed = allowed;
    a.large_segment = large_segment;
    a.lowest = TOP;
    for (i = 0; i < num_storages; i++) {
        where[i] = NONE;
        held[i] = -1;
    }
    for (p = 0; p < num_parts && status == DONE; p++) {
        int64_t length = parts[3 * p], count = parts[3 * p + 1], shift = parts[3 * p + 2];
        for (k = 0; k < count && status == DONE; k++) {
            for (j = 0; j < length && status == DONE; j++, position++) {
                int dies = events[j] < 0;
                int64_t storage = (dies ? ~(int64_t)events[j] : events[j]) + k * shift;
                for (; f < num_flushes && flushes[f] == position && status == DONE; f++)
                    status = empty_cache(&a);
                if (status != DONE)
                    break;
                if (storage < 0 || storage >= num_storages || dies != (held[storage] >= 0)) {
                    status = BAD_EVENT;
                } else if (dies) {
                    if (where[storage] != NONE)
                        status = free_block(&a, where[storage]);
                    where[storage] = NONE;
                    held[storage] = -1;
                } else if (sizes[storage] <= 0) {
                    if (sizes[storage] < 0)
                        status = BAD_EVENT;
                    held[storage] = 0;
                } else {
                    status = allocate(&a, (sizes[storage] + GRAIN - 1) / GRAIN * GRAIN, &where[storage]);
                    if (status == DONE)
                        held[storage] = a.blocks[where[storage]].size;
                }
            }
        }
        events += length;
    }
    if (status == FULL) {
        failed_at = position - 1;
        status = DONE;
    }
    outcome[RESERVED_PEAK] = a.reserved_peak;
    outcome[ALLOCATED_PEAK] = a.allocated_peak;
    outcome[NUM_FLUSHES] = a.num_flushes;
    outcome[FAILED_AT] = failed_at;
    outcome[ALLOCATED] = a.allocated;
    outcome[RESERVED] = a.reserved;
    free(where);
    free(a.blocks);
    free(a.small.free.entries);
    free(a.small.unmapped.entries);
    free(a.large.free.entries);
    free(a.large.unmapped.entries);
    return status;
}
