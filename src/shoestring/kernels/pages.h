// Blocks of whole pages, cut from large reserved ranges of addresses. Addresses cost nothing; pages do: the system
// clears each one when it is first touched, which takes longer than most passes over it.
//
// Ranges tile every segment. One is live (somebody's block), kept (free, its pages still there: to hand it out costs
// nothing) or clean (free, without pages). Free neighbours of one state are one range. A block is the kept range that
// fits best; else the largest kept range with clean addresses beside it; else clean addresses.
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

namespace blocks {

class Pages {
public:
    size_t live = 0, kept = 0;          // bytes of ranges
    int64_t fresh = 0, given_back = 0;  // bytes of new pages so far, and of pages that went back

    size_t rounded(size_t bytes) const { return (bytes + page_ - 1) / page_ * page_; }

    // A block of `bytes`, whole pages, with at most `room` more pages resident than before; nullptr where the system
    // has no addresses left. Its length as the caller counts it is remembered.
    char* take(size_t bytes, size_t asked, size_t room);
    // -> its length as the caller counted it; `block` is one of those taken.
    size_t release(char* block);
    // Whether an address is in one of the segments.
    bool holds(const char* address) const;
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

    Ranges ranges_;
    BySize free_[3];           // by state; none for LIVE
    const size_t page_ = sysconf(_SC_PAGESIZE);
    const bool reserves_ = may_reserve();

    static bool may_reserve();
    char* place(size_t bytes);
    char* new_segment(size_t bytes);
    Ranges::iterator cut(char* at);
    void list(Ranges::iterator range) { free_[range->second.state].insert({range->second.bytes, range->first}); }
    void unlist(Ranges::iterator range) { free_[range->second.state].erase({range->second.bytes, range->first}); }
    void set_free(Ranges::iterator range, State state);
};

// Where addresses are limited or counted as memory, a segment is one block.
inline bool Pages::may_reserve() {
    rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) || limit.rlim_cur != RLIM_INFINITY) return false;
    int mode = 2;
    if (FILE* file = fopen("/proc/sys/vm/overcommit_memory", "r")) {
        if (fscanf(file, "%d", &mode) != 1) mode = 2;
        fclose(file);
    }
    return mode != 2;
}

inline char* Pages::take(size_t bytes, size_t asked, size_t room) {
    char* const start = place(bytes);
    if (!start) return nullptr;
    auto range = cut(start);
    const bool begins_segment = range->second.begins_segment;
    size_t missing = 0;
    for (size_t covered = 0; covered < bytes;) {
        if (range->second.bytes > bytes - covered) cut(range->first + (bytes - covered));
        unlist(range);
        covered += range->second.bytes;
        if (range->second.state == CLEAN) missing += range->second.bytes;
        range = ranges_.erase(range);
    }
    ranges_.emplace_hint(range, start, Range{bytes, LIVE, begins_segment, asked});
    live += bytes;
    kept -= bytes - missing;
    if (missing > room) give_back(missing - room);
    fresh += missing;
    return start;
}

inline size_t Pages::release(char* block) {
    auto range = ranges_.find(block);
    if (range == ranges_.end() || range->second.state != LIVE) return 0;
    const size_t asked = range->second.asked;
    live -= range->second.bytes;
    kept += range->second.bytes;
    set_free(range, KEPT);
    return asked;
}

inline bool Pages::holds(const char* address) const {
    auto after = ranges_.upper_bound(const_cast<char*>(address));
    if (after == ranges_.begin()) return false;
    --after;
    return address < after->first + after->second.bytes;
}

// The largest first, so that the small ones that many blocks fit stay.
inline void Pages::give_back(size_t bytes) {
    while (bytes && !free_[KEPT].empty()) {
        auto [length, start] = *free_[KEPT].rbegin();
        const size_t piece = bytes < length ? rounded(bytes) : length;
        char* const from = start + (length - piece);
        madvise(from, piece, MADV_DONTNEED);
        kept -= piece, given_back += piece;
        set_free(cut(from), CLEAN);
        bytes -= std::min(bytes, piece);
    }
}

inline char* Pages::place(size_t bytes) {
    auto found = free_[KEPT].lower_bound({bytes, nullptr});
    if (found != free_[KEPT].end()) return found->second;
    for (auto kept_range = free_[KEPT].rbegin(); kept_range != free_[KEPT].rend(); ++kept_range) {
        auto first = ranges_.find(kept_range->second), last = first;
        while (!first->second.begins_segment && std::prev(first)->second.state != LIVE) --first;
        for (auto next = std::next(last); next != ranges_.end(); ++next) {
            if (next->second.begins_segment || next->second.state == LIVE) break;
            last = next;
        }
        char* const end = last->first + last->second.bytes;
        if (size_t(end - first->first) >= bytes)
            return std::max(first->first, std::min(kept_range->second, end - bytes));
    }
    found = free_[CLEAN].lower_bound({bytes, nullptr});
    return found != free_[CLEAN].end() ? found->second : new_segment(bytes);
}

// A block larger than a segment is a segment by itself, and the system may find it larger than its memory.
inline char* Pages::new_segment(size_t bytes) {
    const auto map = [](size_t length, int reserving) {
        return mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | reserving, -1, 0);
    };
    size_t length = reserves_ ? std::max(bytes, SEGMENT) : bytes;
    void* start = map(length, length == SEGMENT ? MAP_NORESERVE : 0);
    if (start == MAP_FAILED && length > bytes) start = map(length = bytes, 0);
    if (start == MAP_FAILED) return nullptr;
    madvise(start, length, MADV_NOHUGEPAGE);  // a touch must not make 2 MB resident that nobody counts
    auto range = ranges_.emplace(static_cast<char*>(start), Range{length, CLEAN, true, 0}).first;
    list(range);
    return range->first;
}

// The range that begins at `at`, after cutting the one that holds it.
inline Pages::Ranges::iterator Pages::cut(char* at) {
    auto range = std::prev(ranges_.upper_bound(at));
    if (range->first == at) return range;
    unlist(range);
    const size_t front = at - range->first;
    auto rest = ranges_.emplace_hint(
        std::next(range), at, Range{range->second.bytes - front, range->second.state, false, range->second.asked});
    range->second.bytes = front;
    list(range);
    list(rest);
    return rest;
}

// Merged with its neighbours of that state. A segment without a page goes.
inline void Pages::set_free(Ranges::iterator range, State state) {
    unlist(range);
    range->second.state = state;
    auto next = std::next(range);
    if (next != ranges_.end() && !next->second.begins_segment && next->second.state == state) {
        unlist(next);
        range->second.bytes += next->second.bytes;
        ranges_.erase(next);
    }
    if (!range->second.begins_segment && std::prev(range)->second.state == state) {
        auto before = std::prev(range);
        unlist(before);
        before->second.bytes += range->second.bytes;
        ranges_.erase(range);
        range = before;
    }
    next = std::next(range);
    if (state == CLEAN && range->second.begins_segment && (next == ranges_.end() || next->second.begins_segment)) {
        munmap(range->first, range->second.bytes);
        ranges_.erase(range);
        return;
    }
    list(range);
}

}  // namespace blocks
