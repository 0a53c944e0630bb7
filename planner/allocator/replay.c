/*
 * A whole run through PyTorch's caching allocator on its default settings.
 *
 * The same decisions as caching.py and fixed.py make, which are the ones to read: this file is there because a replay of an 80-layer model
 * has 140,000 of them. tests/allocator/test_native.py holds it to them.
 *
 * Source: torch@2.13.0, c10/cuda/CUDACachingAllocator.cpp, as there.
 */

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

enum { DONE = 0, NO_MEMORY = 1, BAD_EVENT = 2 };
enum { RESERVED_PEAK, ALLOCATED_PEAK, NUM_FLUSHES, FAILED_AT, ALLOCATED, RESERVED };

typedef struct {
    int64_t address, size;
    int64_t previous, next; /* indices of neighbours in the segment */
    int is_free;
} Block;

typedef struct {
    int64_t size, address, block;
} Entry;

typedef struct {
    Entry *entries; /* by size, then by address: the first that is large enough is the best fit */
    int64_t count, room, least_rest;
} Pool;

typedef struct {
    Block *blocks;
    int64_t count, room, unused; /* unused: the first block that may be taken again, linked by next */
    Pool small, large;
    int64_t capacity, large_segment, lowest, reserved, allocated, reserved_peak, allocated_peak, num_flushes;
} Allocator;

/* Where the entries of at least (size, address) begin. */
static int64_t search(const Pool *pool, int64_t size, int64_t address)
{
    int64_t low = 0, high = pool->count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        const Entry *entry = &pool->entries[middle];
        if (entry->size < size || (entry->size == size && entry->address < address))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int put(Pool *pool, const Block *block, int64_t index)
{
    int64_t i;
    if (pool->count == pool->room) {
        int64_t room = pool->room ? 2 * pool->room : 256;
        Entry *entries = realloc(pool->entries, (size_t)room * sizeof(Entry));
        if (!entries)
            return NO_MEMORY;
        pool->entries = entries;
        pool->room = room;
    }
    i = search(pool, block->size, block->address);
    memmove(&pool->entries[i + 1], &pool->entries[i], (size_t)(pool->count - i) * sizeof(Entry));
    pool->entries[i].size = block->size;
    pool->entries[i].address = block->address;
    pool->entries[i].block = index;
    pool->count++;
    return DONE;
}

static void take(Pool *pool, int64_t i)
{
    pool->count--;
    memmove(&pool->entries[i], &pool->entries[i + 1], (size_t)(pool->count - i) * sizeof(Entry));
}

static int64_t find(const Pool *pool, const Block *block) { return search(pool, block->size, block->address); }

/* Another block instead of the one at i: what lies between their places moves by one. */
static void exchange(Pool *pool, int64_t i, const Block *block, int64_t index)
{
    Entry *entries = pool->entries;
    int64_t j = search(pool, block->size, block->address);
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
    block->is_free = 1;
    return index;
}

static void forget(Allocator *a, int64_t index)
{
    a->blocks[index].next = a->unused;
    a->unused = index;
}

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
static void release_all(Allocator *a, Pool *pool)
{
    int64_t kept = 0, i;
    for (i = 0; i < pool->count; i++) {
        const Entry entry = pool->entries[i];
        const Block *block = &a->blocks[entry.block];
        if (block->previous == NONE && block->next == NONE) {
            a->reserved -= block->size;
            forget(a, entry.block);
        } else {
            pool->entries[kept++] = entry;
        }
    }
    pool->count = kept;
}

static void empty_cache(Allocator *a)
{
    release_all(a, &a->large);
    release_all(a, &a->small);
}

/* alloc_block, after giving back what is cached if there is no room; FAILED if there is none then either. */
enum { FAILED = 3 };
static int grow(Allocator *a, int64_t size, int64_t *index)
{
    int64_t nbytes = segment_size(a, size);
    if (a->capacity >= 0 && a->reserved + nbytes > a->capacity) {
        a->num_flushes++;
        empty_cache(a);
        if (a->reserved + nbytes > a->capacity)
            return FAILED;
    }
    a->reserved += nbytes;
    if (a->reserved > a->reserved_peak)
        a->reserved_peak = a->reserved;
    a->lowest -= nbytes;
    *index = new_block(a, a->lowest, nbytes, NONE, NONE);
    return *index == NONE ? NO_MEMORY : DONE;
}

/* malloc, get_free_block, alloc_found_block */
static int allocate(Allocator *a, int64_t size, int64_t *index)
{
    Pool *pool = size <= SMALL_SIZE ? &a->small : &a->large;
    int64_t i = search(pool, size, -1), rest;
    if (i < pool->count) {
        *index = pool->entries[i].block;
    } else {
        int status = grow(a, size, index);
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
            exchange(pool, i, &a->blocks[tail], tail);
        else if (put(pool, &a->blocks[tail], tail) != DONE)
            return NO_MEMORY;
    } else if (i != NONE) {
        take(pool, i);
    }
    a->blocks[*index].is_free = 0;
    a->allocated += a->blocks[*index].size;
    if (a->allocated > a->allocated_peak)
        a->allocated_peak = a->allocated;
    return DONE;
}

/* free_block, try_merge_blocks */
static int free_block(Allocator *a, int64_t index)
{
    Block *block = &a->blocks[index];
    Pool *pool = block->size <= SMALL_SIZE ? &a->small : &a->large;
    int64_t other, i = NONE; /* i: the entry of a neighbour, which the joined block takes over */
    block->is_free = 1;
    a->allocated -= block->size;
    other = block->next;
    if (other != NONE && a->blocks[other].is_free) {
        i = find(pool, &a->blocks[other]);
        block->size += a->blocks[other].size;
        block->next = a->blocks[other].next;
        if (block->next != NONE)
            a->blocks[block->next].previous = index;
        forget(a, other);
    }
    other = block->previous;
    if (other != NONE && a->blocks[other].is_free) {
        if (i != NONE)
            take(pool, i);
        i = find(pool, &a->blocks[other]);
        a->blocks[other].size += block->size;
        a->blocks[other].next = block->next;
        if (block->next != NONE)
            a->blocks[block->next].previous = other;
        forget(a, index);
        index = other;
    }
    if (i == NONE)
        return put(pool, &a->blocks[index], index);
    exchange(pool, i, &a->blocks[index], index);
    return DONE;
}

/*
 * Run births (an index) and deaths (its complement), until they end or one cannot be served.
 *
 * events: Those of each part, once.
 * parts, num_parts: Of each part three numbers: how many events it has, how often they come, and how far their storages shift each time.
 * flushes, num_flushes: Positions before which the cache is emptied, in order.
 * sizes, num_storages: Bytes of each storage.
 * capacity: Bytes that can be reserved; negative for no end.
 * large_segment: Bytes of segments for 1 to 10 MiB.
 * held: Of each storage, the size of its block at the end, if it is alive; -1 else.
 * outcome: Six numbers, in the order of the enum above; FAILED_AT is -1 if all events were served.
 */
int qplan_replay(const int32_t *events, const int64_t *parts, int64_t num_parts, const int64_t *flushes, int64_t num_flushes,
                 const int64_t *sizes, int64_t num_storages, int64_t capacity, int64_t large_segment, int64_t *held, int64_t *outcome)
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
    a.large.least_rest = SMALL_SIZE + GRAIN;
    a.capacity = capacity;
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
                while (f < num_flushes && flushes[f] == position) {
                    empty_cache(&a);
                    f++;
                }
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
    if (status == FAILED) {
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
    free(a.small.entries);
    free(a.large.entries);
    return status;
}
