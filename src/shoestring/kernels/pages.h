// Blocks of whole pages, cut from large reserved ranges of addresses. Addresses cost nothing; pages do: the system
// clears each one when it is first touched, which takes longer than most passes over it.
//
// Ranges tile every segment. One is live (somebody's block), kept (free, its pages still there: to hand it out costs
// nothing) or clean (free, without pages). Free neighbours of one state are one range. A block is the kept range that
// fits best; else the largest kept range with clean addresses beside it; else clean addresses. Pages that it lacks are
// moved there from other kept ranges (mremap: microseconds for many at once, where clearing takes microseconds each):
// free pages in many pieces serve as well as in one, and new ones are needed only beyond the most that was ever live.
#pragma once

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <map>
#include <set>
#include <utility>
#include <vector>

#ifndef MREMAP_DONTUNMAP  // Linux 5.7
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MAP_FIXED_NOREPLACE  // Linux 4.17
#define MAP_FIXED_NOREPLACE 0x100000
#endif

namespace blocks {

class Pages {
public:
    size_t live = 0, kept = 0;                     // bytes of ranges
    int64_t fresh = 0, moved = 0, given_back = 0;  // bytes of new, moved and returned pages, ever
    bool moves = can_move();                       // whether pages are moved

    static bool can_move();
    size_t rounded(size_t bytes) const { return (bytes + page_ - 1) / page_ * page_; }

    // A block of `bytes`, whole pages, with at most `room` more resident than before as long as kept pages can go
    // instead; nullptr where the system has no addresses left. `asked` is remembered.
    char* take(size_t bytes, size_t asked, size_t room);

    // -> what was asked; 0 if no block begins there.
    size_t release(char* block);

    // Whether an address is in one of the segments.
    bool holds(char* address) const;

    // Kept pages go back to the system, at least so many bytes of them or all.
    void give_back(size_t bytes);

private:
    enum State { LIVE, KEPT, CLEAN };

    struct Range {
        size_t bytes;
        State state;
        bool begins_segment;  // never merged with the range before it
        size_t asked;
    };

    using Ranges = std::map<char*, Range>;
    using BySize = std::set<std::pair<size_t, char*>>;

    static constexpr size_t SEGMENT = size_t(1) << 30;
    static constexpr size_t CRUMB = 16;    // pages; to move fewer takes as long as to clear them
    static constexpr size_t SEAMS = 8192;  // a process may have 65,530 mappings

    Ranges ranges_;
    BySize free_[3];         // by state; of live ones none
    std::set<char*> seams_;  // where one mapping of the system may end and another begin
    size_t releases_ = 0;    // since the last mending
    const size_t page_ = sysconf(_SC_PAGESIZE);
    const bool reserves_ = may_reserve();

    static bool may_reserve();
    static char* map(char* at, size_t bytes, int how);
    char* new_segment(size_t bytes);

    char* place(size_t bytes);
    Ranges::iterator cut(char* at);
    void list(Ranges::iterator range) { free_[range->second.state].insert({range->second.bytes, range->first}); }
    void unlist(Ranges::iterator range) { free_[range->second.state].erase({range->second.bytes, range->first}); }
    void set_free(Ranges::iterator range, State state);

    size_t move(char* to, size_t bytes);
    void clear(char* from, size_t bytes);
    void mend();
};

inline char* Pages::take(size_t bytes, size_t asked, size_t room) {
    char* const start = place(bytes);
    if (!start) return nullptr;
    auto range = cut(start);
    const bool begins_segment = range->second.begins_segment;
    std::vector<std::pair<char*, size_t>> gaps;  // the clean part of it
    size_t lacking = 0;
    for (size_t covered = 0; covered < bytes;) {
        if (range->second.bytes > bytes - covered) cut(range->first + (bytes - covered));
        unlist(range);
        covered += range->second.bytes;
        if (range->second.state == CLEAN) {
            gaps.push_back({range->first, range->second.bytes});
            lacking += range->second.bytes;
        }
        range = ranges_.erase(range);
    }
    ranges_.emplace_hint(range, start, Range{bytes, LIVE, begins_segment, asked});
    live += bytes;
    kept -= bytes - lacking;
    for (auto [gap, length] : gaps)
        while (const size_t piece = move(gap, length)) gap += piece, length -= piece, lacking -= piece;
    if (lacking > room) give_back(lacking - room);
    fresh += lacking;
    return start;
}

inline size_t Pages::release(char* block) {
    auto range = ranges_.find(block);
    if (range == ranges_.end() || range->second.state != LIVE) return 0;
    const size_t asked = range->second.asked;
    live -= range->second.bytes;
    kept += range->second.bytes;
    set_free(range, KEPT);
    if (++releases_ > 1024 && seams_.size() > SEAMS / 2 && kept > live / 2) mend();
    return asked;
}

inline bool Pages::holds(char* address) const {
    auto after = ranges_.upper_bound(address);
    if (after == ranges_.begin()) return false;
    const auto& [start, range] = *std::prev(after);
    return address < start + range.bytes;
}

// The largest first: small ones are what many a block fits.
inline void Pages::give_back(size_t bytes) {
    while (bytes && !free_[KEPT].empty()) {
        const auto [length, start] = *free_[KEPT].rbegin();
        const size_t piece = bytes < length ? rounded(bytes) : length;
        char* const from = start + (length - piece);
        clear(from, piece);
        kept -= piece, given_back += piece;
        set_free(cut(from), CLEAN);
        bytes -= std::min(bytes, piece);
    }
}

// --- addresses ----------------------------------------------------------------------------------------------------

// Where a block could be: the beginning of free addresses of that length.
inline char* Pages::place(size_t bytes) {
    auto found = free_[KEPT].lower_bound({bytes, nullptr});
    if (found != free_[KEPT].end()) return found->second;
    for (auto largest = free_[KEPT].rbegin(); largest != free_[KEPT].rend(); ++largest) {
        auto first = ranges_.find(largest->second), last = first;
        while (!first->second.begins_segment && std::prev(first)->second.state != LIVE) --first;
        for (auto next = std::next(last); next != ranges_.end(); last = next++)
            if (next->second.begins_segment || next->second.state == LIVE) break;
        char* const end = last->first + last->second.bytes;
        if (size_t(end - first->first) >= bytes) return std::max(first->first, std::min(largest->second, end - bytes));
    }
    found = free_[CLEAN].lower_bound({bytes, nullptr});
    return found != free_[CLEAN].end() ? found->second : new_segment(bytes);
}

// A block larger than a segment is one by itself, and the system may find that it has not so much memory.
inline char* Pages::new_segment(size_t bytes) {
    size_t length = reserves_ ? std::max(bytes, SEGMENT) : bytes;
    char* start = map(nullptr, length, length == SEGMENT ? MAP_NORESERVE : 0);
    if (!start && length > bytes) start = map(nullptr, length = bytes, 0);
    if (start) list(ranges_.emplace(start, Range{length, CLEAN, true, 0}).first);
    return start;
}

inline char* Pages::map(char* at, size_t bytes, int how) {
    void* const start = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | how, -1, 0);
    if (start == MAP_FAILED) return nullptr;
    madvise(start, bytes, MADV_NOHUGEPAGE);  // a touch must not make 2 MB resident that nobody counts
    return static_cast<char*>(start);
}

// Where addresses are limited or counted as if they were memory, a segment is one block.
inline bool Pages::may_reserve() {
    for (auto resource : {RLIMIT_AS, RLIMIT_DATA}) {
        rlimit limit;
        if (getrlimit(resource, &limit) || limit.rlim_cur != RLIM_INFINITY) return false;
    }
    int mode = 2;
    if (FILE* file = fopen("/proc/sys/vm/overcommit_memory", "r")) {
        if (fscanf(file, "%d", &mode) != 1) mode = 2;
        fclose(file);
    }
    return mode != 2;
}

// The range that begins at `at`, after cutting the one that holds it.
inline Pages::Ranges::iterator Pages::cut(char* at) {
    auto range = std::prev(ranges_.upper_bound(at));
    if (range->first == at) return range;
    unlist(range);
    const size_t front = at - range->first;
    Range rest = range->second;
    rest.bytes -= front, rest.begins_segment = false;
    range->second.bytes = front;
    list(range);
    range = ranges_.emplace_hint(std::next(range), at, rest);
    list(range);
    return range;
}

// Merged with its neighbours of that state. A segment without a page goes.
inline void Pages::set_free(Ranges::iterator range, State state) {
    unlist(range);
    range->second.state = state;
    auto next = std::next(range);
    if (next != ranges_.end() && !next->second.begins_segment && next->second.state == state) {
        unlist(next);
        range->second.bytes += next->second.bytes;
        next = ranges_.erase(next);
    }
    if (!range->second.begins_segment && std::prev(range)->second.state == state) {
        const auto before = std::prev(range);
        unlist(before);
        before->second.bytes += range->second.bytes;
        ranges_.erase(range);
        range = before;
    }
    const bool alone = range->second.begins_segment && (next == ranges_.end() || next->second.begins_segment);
    if (state != CLEAN || !alone) return list(range);
    munmap(range->first, range->second.bytes);
    seams_.erase(seams_.lower_bound(range->first), seams_.lower_bound(range->first + range->second.bytes));
    ranges_.erase(range);
}

// --- pages --------------------------------------------------------------------------------------------------------

inline bool Pages::can_move() {
    const size_t page = sysconf(_SC_PAGESIZE);
    char* const pages = map(nullptr, 2 * page, MAP_NORESERVE);
    if (!pages) return false;
    const int how = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
    const bool can = mremap(pages, page, page, how, pages + page) != MAP_FAILED;
    munmap(pages, 2 * page);
    return can;
}

// Pages of one kept range, at most so many bytes of them, to clean addresses -> how many; 0 where none can be moved.
// The addresses where they were stay mapped, so that nobody else's memory can get there.
inline size_t Pages::move(char* to, size_t bytes) {
    if (!bytes || !moves || seams_.size() > SEAMS) return 0;
    if (free_[KEPT].empty() || free_[KEPT].rbegin()->first < CRUMB * page_) return 0;
    auto found = free_[KEPT].lower_bound({bytes, nullptr});
    if (found == free_[KEPT].end()) --found;
    const auto source = ranges_.find(found->second);
    char* const from = source->first;
    size_t piece = std::min(bytes, source->second.bytes);
    const auto seam = seams_.upper_bound(from);
    if (seam != seams_.end()) piece = std::min(piece, size_t(*seam - from));
    if (mremap(from, piece, piece, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) == MAP_FAILED) {
        map(to, piece, MAP_NORESERVE | MAP_FIXED_NOREPLACE);  // in want of memory it may have unmapped what was there
        moves = false;
        return 0;
    }
    seams_.erase(seams_.upper_bound(to), seams_.lower_bound(to + piece));
    seams_.insert({to, to + piece});
    kept -= piece, moved += piece;
    if (source->second.bytes > piece) cut(from + piece);
    set_free(source, CLEAN);
    return piece;
}

// The pages of free addresses go, and the seams inside.
inline void Pages::clear(char* from, size_t bytes) {
    const auto first = seams_.upper_bound(from), last = seams_.lower_bound(from + bytes);
    if (first != last && map(from, bytes, MAP_NORESERVE | MAP_FIXED)) {
        seams_.erase(first, last);
        seams_.insert({from, from + bytes});  // it may not have become one with its surroundings
    } else {
        madvise(from, bytes, MADV_DONTNEED);
    }
}

// Before there are too many mappings, free addresses become one again, at the price of the pages that moved there.
inline void Pages::mend() {
    releases_ = 0;
    for (const auto& [bytes, start] : BySize(free_[KEPT])) {
        const auto seam = seams_.upper_bound(start);
        if (seam == seams_.end() || *seam >= start + bytes) continue;
        clear(start, bytes);
        kept -= bytes, given_back += bytes;
        set_free(ranges_.find(start), CLEAN);
    }
    for (const auto& [bytes, start] : free_[CLEAN]) clear(start, bytes);
}

}  // namespace blocks
