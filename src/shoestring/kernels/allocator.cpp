// The memory of tensors, counted and limited: pages.h for large blocks, malloc for small ones, under one lock.
//
// live is what was asked for and not freed; held is what is resident for it: pages of live and of kept blocks, and small
// blocks with their headers. held grows beyond neither the cap nor the larger of target and what live blocks occupy.
// With WITHOUT_TORCH defined there is only the part that any program can use.

#include <pthread.h>

#include <cstdlib>
#include <mutex>

#include "pages.h"

namespace blocks {

constexpr size_t SMALL = 64 << 10;  // from here on a block has its own pages
constexpr size_t ALIGNMENT = 64;
constexpr uint64_t MARK = 0x5368'6f65'7374'7231;

struct Header {  // before each small block
    void* from_malloc;
    size_t asked;
    uint64_t mark;
};
constexpr size_t OVERHEAD = sizeof(Header) + ALIGNMENT;

struct Counts {
    int64_t live, held, live_peak, held_peak, allocations, reused, fresh, moved, given_back;
};

struct Event {
    int64_t bytes, live, block;  // taken or, negative, freed; live thereafter; its address
};

struct Refused {
    size_t asked, live, cap;
    bool by_system;
};

class Memory {
public:
    void* take(size_t asked) {
        if (!asked) return nullptr;
        std::lock_guard<std::mutex> guard(lock_);
        const bool small = asked < SMALL;
        const size_t bytes = small ? asked + OVERHEAD : pages_.rounded(asked);
        if (bytes < asked || bytes > cap_ || used() > cap_ - bytes) throw Refused{asked, live_, cap_, false};
        // What small blocks add to held is little, and a page given back for each of them would be much.
        const size_t limit = small ? cap_ : std::min(cap_, target_);
        const size_t room = limit > held() ? limit - held() : 0;
        const int64_t fresh = pages_.fresh;
        void* block = small ? take_small(asked, room) : take_pages(bytes, asked, room);
        if (!block) throw Refused{asked, live_, cap_, true};
        live_ += asked;
        ++counts_.allocations;
        counts_.reused += !small && pages_.fresh == fresh;
        counts_.live_peak = std::max(counts_.live_peak, int64_t(live_));
        counts_.held_peak = std::max(counts_.held_peak, int64_t(held()));
        if (tracing_) events_.push_back({int64_t(asked), int64_t(live_), int64_t(block)});
        return block;
    }

    void release(void* block) {
        if (!block) return;
        std::lock_guard<std::mutex> guard(lock_);
        char* const start = static_cast<char*>(block);
        const size_t asked = pages_.holds(start) ? pages_.release(start) : release_small(start);
        if (!asked) {
            fprintf(stderr, "shoestring: %p is freed, and is no block of this allocator\n", block);
            abort();
        }
        live_ -= asked;
        if (held() > cap_) pages_.give_back(held() - cap_);
        if (tracing_) events_.push_back({-int64_t(asked), int64_t(live_), int64_t(block)});
    }

    Counts counts() {
        std::lock_guard<std::mutex> guard(lock_);
        Counts now = counts_;
        now.live = live_, now.held = held();
        now.fresh = pages_.fresh, now.moved = pages_.moved, now.given_back = pages_.given_back;
        return now;
    }

    void limit(size_t cap, size_t target) {
        std::lock_guard<std::mutex> guard(lock_);
        cap_ = cap, target_ = target;
        const size_t most = std::min(cap_, target_);
        if (held() > most) pages_.give_back(held() - most);
    }

    void reset_peaks() {
        std::lock_guard<std::mutex> guard(lock_);
        counts_.live_peak = live_, counts_.held_peak = held();
    }

    void give_back() {
        std::lock_guard<std::mutex> guard(lock_);
        pages_.give_back(SIZE_MAX);
    }

    // Whether pages are moved, where they can be -> whether they were until now.
    bool move(bool on) {
        std::lock_guard<std::mutex> guard(lock_);
        return std::exchange(pages_.moves, on && Pages::can_move());
    }

    void trace(bool on) {
        std::lock_guard<std::mutex> guard(lock_);
        tracing_ = on;
    }

    // -> how many events there are; with a place for them, they are there afterwards and no longer here.
    size_t events(Event* to) {
        std::lock_guard<std::mutex> guard(lock_);
        if (to) std::copy(events_.begin(), events_.end(), to);
        return to ? std::exchange(events_, {}).size() : events_.size();
    }

    void lock() { lock_.lock(); }
    void unlock() { lock_.unlock(); }

private:
    std::mutex lock_;
    Pages pages_;
    size_t live_ = 0, small_ = 0, cap_ = SIZE_MAX, target_ = SIZE_MAX;
    Counts counts_{};
    bool tracing_ = false;
    std::vector<Event> events_;

    size_t used() const { return pages_.live + small_; }
    size_t held() const { return used() + pages_.kept; }

    void* take_pages(size_t bytes, size_t asked, size_t room) {
        void* block = pages_.take(bytes, asked, room);
        if (block || !pages_.kept) return block;
        pages_.give_back(SIZE_MAX);
        return pages_.take(bytes, asked, room);
    }

    // malloc and a start of our own: posix_memalign takes several times as long.
    void* take_small(size_t asked, size_t room) {
        if (asked + OVERHEAD > room) pages_.give_back(std::max(asked + OVERHEAD - room, SMALL));
        void* from_malloc = malloc(asked + OVERHEAD);
        if (!from_malloc) return nullptr;
        const uintptr_t start = (uintptr_t(from_malloc) + OVERHEAD) / ALIGNMENT * ALIGNMENT;
        reinterpret_cast<Header*>(start)[-1] = {from_malloc, asked, MARK};
        small_ += asked + OVERHEAD;
        return reinterpret_cast<void*>(start);
    }

    size_t release_small(char* start) {
        Header* const header = reinterpret_cast<Header*>(start) - 1;
        if (header->mark != MARK) return 0;
        const size_t asked = header->asked;
        header->mark = 0;
        free(header->from_malloc);
        small_ -= asked + OVERHEAD;
        return asked;
    }
};

// Never destroyed: tensors outlive everything. A fork waits until no thread is inside, and both sides go on.
static Memory& memory() {
    static Memory* const one = [] {
        pthread_atfork([] { memory().lock(); }, [] { memory().unlock(); }, [] { memory().unlock(); });
        return new Memory;
    }();
    return *one;
}

}  // namespace blocks

// --- for ctypes ---------------------------------------------------------------------------------------------------

extern "C" {
void* memory_take(size_t asked) {
    try {
        return blocks::memory().take(asked);
    } catch (const blocks::Refused&) {
        return nullptr;
    }
}
void memory_release(void* block) { blocks::memory().release(block); }
void memory_counts(blocks::Counts* counts) { *counts = blocks::memory().counts(); }
void memory_limit(size_t cap, size_t target) { blocks::memory().limit(cap, target); }
void memory_reset_peaks() { blocks::memory().reset_peaks(); }
void memory_give_back() { blocks::memory().give_back(); }
int memory_move(int on) { return blocks::memory().move(on); }
void memory_trace(int on) { blocks::memory().trace(on); }
size_t memory_events(blocks::Event* events) { return blocks::memory().events(events); }
}

// --- for torch ----------------------------------------------------------------------------------------------------

#ifndef WITHOUT_TORCH
#include <c10/core/CPUAllocator.h>

#include <string>

static void release_block(void* block) {
    c10::profiledCPUMemoryReporter().Delete(block);
    blocks::memory().release(block);
}

struct TensorAllocator final : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override {
        try {
            void* block = blocks::memory().take(bytes);
            c10::profiledCPUMemoryReporter().New(block, bytes);
            return {block, block, &release_block, c10::Device(c10::DeviceType::CPU)};
        } catch (const blocks::Refused& refused) {
            c10::profiledCPUMemoryReporter().OutOfMemory(bytes);
            const auto& [asked, live, cap, by_system] = refused;
            const std::string sizes = std::to_string(asked) + " bytes: " + std::to_string(live) + " live";
            TORCH_CHECK_WITH(OutOfMemoryError, !by_system, "the system has no room for a tensor of ", sizes);
            TORCH_CHECK_WITH(OutOfMemoryError, false, "no room for a tensor of ", sizes, " of at most ", cap);
        }
    }
    c10::DeleterFnPtr raw_deleter() const override { return &release_block; }
    void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

// -> whether torch's CPU tensors come from here now.
extern "C" int install_for_torch() {
    static TensorAllocator* const allocator = new TensorAllocator;
    c10::SetCPUAllocator(allocator, 1);
    return c10::GetCPUAllocator() == allocator;
}
#endif
