"""The caching allocator once more, by brute force, for tests: intervals that are computed anew for every request."""

from __future__ import annotations

import itertools

from planner.allocator import AllocatorSettings

MIB = 1 << 20


class Space:
    """A segment, or the address range of an expandable pool: where its live blocks are and which pages have memory."""

    def __init__(self, length: int, page: int, mapped: set[int]) -> None:
        self.length, self.page, self.mapped = length, page, mapped
        self.live: dict[int, int] = {}
        self.idle_since = 0

    def gaps(self) -> list[tuple[int, int]]:
        """(begin, end) of what is not live."""
        edges = [0]
        for begin, size in sorted(self.live.items()):
            edges += [begin, begin + size]
        edges.append(self.length)
        return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]

    def pieces(self, gap: tuple[int, int]) -> list[tuple[int, int, bool]]:
        """(begin, end, has memory) of the stretches of a gap."""
        found = []
        at, end = gap
        for page in sorted(self.mapped):
            begin, after = max(page * self.page, at), min((page + 1) * self.page, end)
            if begin >= after:
                continue
            if begin > at:
                found.append((at, begin, False))
            if found and found[-1][1:] == (begin, True):
                found[-1] = (found[-1][0], after, True)
            else:
                found.append((begin, after, True))
            at = after
        return [*found, (at, end, False)] if at < end else found


class Model:
    """What each request gives: the space, where the block begins and how many bytes it has; None if the card is full."""

    def __init__(self, capacity: int | None, chosen: AllocatorSettings) -> None:
        self.chosen, self.capacity = chosen, capacity
        fraction = chosen.per_process_memory_fraction
        self.allowed = int(fraction * capacity) if capacity and fraction < 1 else None
        self.spaces: dict[bool, list[Space]] = {False: [], True: []}
        self.searches = self.reserved = self.flushes = 0

    def rounded(self, n: int) -> int:
        floor = 1
        while floor * 2 <= n:
            floor *= 2
        division = self.chosen.roundup_power2_divisions[min((floor // MIB).bit_length() - 1 if floor >= MIB else 0, 15)]
        step = floor // division if division > 1 and n > 512 * division else 512
        return -(-n // step) * step

    def allocate(self, n: int) -> tuple[Space, int, int] | None:
        size = self.rounded(n)
        large = size > MIB
        self.searches += large
        found = self.cached(large, size)
        if found is None:
            self.collect()
            found = self.new(large, size)
        if found is None:
            self.flushes += 1
            found = self.new(large, size) if self.release_oversize(large, size) else None
        if found is None:
            self.empty_cache()
            found = self.new(large, size)
        if found is None:
            return None
        space, begin, end = found
        rest, limit = end - begin - size, self.chosen.max_split_size
        always = not large or self.chosen.expandable_segments
        split = rest >= 512 if always else rest > MIB and (limit is None or size < limit)
        space.live[begin] = size if split else end - begin
        return space, begin, space.live[begin]

    def cached(self, large: bool, size: int) -> tuple[Space, int, int] | None:
        runs = []
        for order, space in enumerate(self.spaces[large]):
            for gap in space.gaps():
                pieces = [*space.pieces(gap), (gap[1], gap[1], False)]
                for (begin, end, mapped), following in itertools.pairwise(pieces):
                    if mapped and end - begin >= size:
                        runs.append((end - begin, order, begin, end, following[1] - begin))
        if not runs:
            return None
        chosen, *others = sorted(runs)
        for other in others:
            if not self.chosen.expandable_segments or other[4] >= chosen[4]:
                break
            chosen = other
        limit, slack = self.chosen.max_split_size, self.chosen.max_non_split_rounding or self.chosen.large_segment_size
        if limit is not None and (chosen[0] >= limit if size < limit else chosen[0] >= size + slack):
            return None
        return self.spaces[large][chosen[1]], chosen[2], chosen[3]

    def take(self, nbytes: int) -> bool:
        if self.capacity is not None and self.reserved + nbytes > self.capacity:
            return False
        self.reserved += nbytes
        return True

    def new(self, large: bool, size: int) -> tuple[Space, int, int] | None:
        page = self.chosen.large_segment_size if large else 2 * MIB
        segment = page if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
        if self.allowed is not None and self.reserved + segment > self.allowed:
            return None
        if self.chosen.expandable_segments:
            return self.expand(self.spaces[large], size, page)
        if not self.take(segment):
            return None
        self.spaces[large].insert(0, Space(segment, segment, {0}))  # below those before it
        return self.spaces[large][0], 0, segment

    def expand(self, spaces: list[Space], size: int, page: int) -> tuple[Space, int, int] | None:
        room = [found for space in spaces if (found := self.room(space, size))]
        if not room:
            nbytes = 1 << 40 if self.capacity is None else max(self.capacity + self.capacity // 8, size)
            spaces.append(Space(-(-nbytes // page) * page, page, set()))
            room = [(spaces[-1], 0)]
        space, first = room[0]
        (gap,) = [gap for gap in space.gaps() if gap[0] <= first < gap[1]]
        for begin, end, mapped in space.pieces(gap):
            if not mapped and first <= begin < first + size:
                pages = -(-min(end - begin, first + size - begin) // page)
                if not self.take(pages * page):
                    return None
                space.mapped |= set(range(begin // page, begin // page + pages))
        (end,) = [end for begin, end, _ in space.pieces(gap) if begin == first]
        return space, first, end

    def room(self, space: Space, size: int) -> tuple[Space, int] | None:
        for gap in space.gaps():
            pieces = space.pieces(gap)
            for i, (begin, _, mapped) in enumerate(pieces):
                first = pieces[i - 1][0] if i else begin
                if not mapped and gap[1] - first >= size:
                    return space, first
        return None

    def free(self, space: Space, begin: int) -> None:
        del space.live[begin]
        space.idle_since = self.searches

    def release(self, spaces: list[Space], space: Space) -> None:
        spaces.remove(space)
        self.reserved -= space.length

    def empty_cache(self) -> None:
        for spaces in self.spaces.values():
            for space in list(spaces):
                if not self.chosen.expandable_segments:
                    if not space.live:
                        self.release(spaces, space)
                    continue
                whole = {p for a, b in space.gaps() for p in space.mapped if p * space.page >= a and (p + 1) * space.page <= b}
                space.mapped -= whole
                self.reserved -= len(whole) * space.page
                if whole and not space.mapped:
                    spaces.remove(space)

    def release_oversize(self, large: bool, size: int) -> bool:
        limit = self.chosen.max_split_size
        if limit is None or self.chosen.expandable_segments:
            return False
        target, spaces = max(size, limit), self.spaces[large]
        idle = sorted((s.length, i) for i, s in enumerate(spaces) if not s.live and s.length >= limit)
        fitting = [i for length, i in idle if length >= target]
        gone, total = fitting[:1], 0
        while not fitting and idle and total < target:
            total += idle[-1][0]
            gone.append(idle.pop()[1])
        for space in [spaces[i] for i in gone]:
            self.release(spaces, space)
        return bool(fitting) or total >= target

    def collect(self) -> None:
        threshold = self.chosen.garbage_collection_threshold
        if self.allowed is None or not threshold or self.chosen.expandable_segments:
            return
        while self.reserved > int(threshold * self.allowed):
            idle = [space for space in self.spaces[True] if not space.live]
            ages = [self.searches - space.idle_since for space in idle]
            for space, age in zip(idle, ages, strict=True):
                if age >= sum(ages) / len(ages):
                    self.release(self.spaces[True], space)
            if not idle:
                return
