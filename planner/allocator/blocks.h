/* Blocks, the sorted lists that they wait in, and the card: blocks.py for replay.c. */

#ifndef QPLAN_BLOCKS_H
#define QPLAN_BLOCKS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MIB ((int64_t)1 << 20)
#define GRAIN 512
#define SMALL_SIZE MIB
#define SMALL_SEGMENT (2 * MIB)
#define MIN_LARGE_ALLOCATION (10 * MIB)
#define LARGE_ROUNDING (2 * MIB)
#define TOP ((int64_t)1 << 47)
#define NONE (-1)

enum { DONE = 0, NO_MEMORY = 1, BAD_EVENT = 2, FULL = 3 };
enum { LIVE, FREE, UNMAPPED };

typedef struct {
    int64_t address, size;
    int64_t previous, next; /* indices of neighbours in the segment */
    int state;
} Block;

typedef struct {
    int64_t size, address, block;
} Entry;

typedef struct {
    Entry *entries; /* by size, then by address: the first that is large enough is the best fit */
    int64_t count, room;
} List;

typedef struct {
    List free, unmapped; /* unmapped: addresses without memory behind them (expandable segments only), by address; sizes there are 0 */
    int64_t least_rest, page;
} Pool;

typedef struct {
    Block *blocks;
    int64_t count, room, unused; /* unused: the first block that may be taken again, linked by next */
    Pool small, large;
    int is_expandable;
    int64_t capacity, allowed, large_segment, lowest, range, next_address;
    int64_t reserved, allocated, reserved_peak, allocated_peak, num_flushes;
} Allocator;

/* Where the entries of at least (size, address) begin. */
static int64_t search(const List *list, int64_t size, int64_t address)
{
    int64_t low = 0, high = list->count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        const Entry *entry = &list->entries[middle];
        if (entry->size < size || (entry->size == size && entry->address < address))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int insert(List *list, int64_t size, int64_t address, int64_t block)
{
    int64_t i;
    if (list->count == list->room) {
        int64_t room = list->room ? 2 * list->room : 256;
        Entry *entries = realloc(list->entries, (size_t)room * sizeof(Entry));
        if (!entries)
            return NO_MEMORY;
        list->entries = entries;
        list->room = room;
    }
    i = search(list, size, address);
    memmove(&list->entries[i + 1], &list->entries[i], (size_t)(list->count - i) * sizeof(Entry));
    list->entries[i].size = size;
    list->entries[i].address = address;
    list->entries[i].block = block;
    list->count++;
    return DONE;
}

static int put(List *list, const Block *block, int64_t index) { return insert(list, block->size, block->address, index); }

static void take(List *list, int64_t i)
{
    list->count--;
    memmove(&list->entries[i], &list->entries[i + 1], (size_t)(list->count - i) * sizeof(Entry));
}

static int64_t find(const List *list, const Block *block) { return search(list, block->size, block->address); }

static void drop(List *list, const Block *block) { take(list, find(list, block)); }

/* Another block instead of the one at i: what lies between their places moves by one. */
static void exchange(List *list, int64_t i, const Block *block, int64_t index)
{
    Entry *entries = list->entries;
    int64_t j = search(list, block->size, block->address);
    if (j > i) {
        j--;
        memmove(&entries[i], &entries[i + 1], (size_t)(j - i) * sizeof(Entry));
    } else {
        memmove(&entries[j + 1], &entries[j], (size_t)(i - j) * sizeof(Entry));
    }
    entries[j].size = block->size;
    entries[j].address = block->address;
    entries[j].block = index;
}

static int64_t new_block(Allocator *a, int64_t address, int64_t size, int64_t previous, int64_t next)
{
    int64_t index = a->unused;
    Block *block;
    if (index != NONE) {
        a->unused = a->blocks[index].next;
    } else {
        if (a->count == a->room) {
            int64_t room = a->room ? 2 * a->room : 4096;
            Block *blocks = realloc(a->blocks, (size_t)room * sizeof(Block));
            if (!blocks)
                return NONE;
            a->blocks = blocks;
            a->room = room;
        }
        index = a->count++;
    }
    block = &a->blocks[index];
    block->address = address;
    block->size = size;
    block->previous = previous;
    block->next = next;
    block->state = FREE;
    return index;
}

static void forget(Allocator *a, int64_t index)
{
    a->blocks[index].next = a->unused;
    a->unused = index;
}

/* Take so many bytes of the card. */
static int claim(Allocator *a, int64_t nbytes)
{
    if (a->capacity >= 0 && a->reserved + nbytes > a->capacity)
        return FULL;
    a->reserved += nbytes;
    if (a->reserved > a->reserved_peak)
        a->reserved_peak = a->reserved;
    return DONE;
}

#endif
