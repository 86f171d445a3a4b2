// Threads that take blocks, write them full, free one another's and move the limits, while the process forks:
//
//     g++ -std=c++20 -fsanitize=address -DWITHOUT_TORCH -I src/shoestring/kernels tests/kernels/allocator_stress.cpp
//
// Its argument is how many seconds. It ends with 0 if every block kept its contents and all counts came to nothing.

#include <sys/mman.h>
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

static void require(bool fact, const char* what) {
    if (fact) return;
    fprintf(stderr, "not so: %s\n", what);
    abort();
}

// Before Linux 6.17 it is an error to move pages of more than one mapping.
static void* move_within_a_mapping(void* from, size_t bytes, size_t again, int how, void* to) {
    bool within = false;
    FILE* maps = fopen("/proc/self/maps", "r");
    uintptr_t begin, end;
    while (!within && fscanf(maps, "%lx-%lx%*[^\n]", &begin, &end) == 2)
        within = begin <= uintptr_t(from) && uintptr_t(from) + bytes <= end;
    fclose(maps);
    require(within, "pages that move are of one mapping");
    return mremap(from, bytes, again, how, to);
}
#define mremap move_within_a_mapping

#include "allocator.cpp"

constexpr int THREADS = 4, SLOTS = 64;
constexpr size_t CAP = 40 << 20;

struct Block {
    unsigned char* start;
    size_t bytes;
    unsigned char mark;
};

static std::atomic<Block*> slots[SLOTS];
static std::atomic<bool> stopped{false};
static std::atomic<long> taken{0}, refused{0};

static Block* take(std::mt19937& random) {
    const size_t bytes = size_t(1) << (random() % 23);
    Block* block = new Block{nullptr, bytes + random() % bytes, static_cast<unsigned char>(random())};
    block->start = static_cast<unsigned char*>(memory_take(block->bytes));
    if (!block->start) {
        ++refused;
        delete block;
        return nullptr;
    }
    ++taken;
    require(uintptr_t(block->start) % 64 == 0, "a block begins at a multiple of 64");
    memset(block->start, block->mark, block->bytes);
    return block;
}

static void release(Block* block) {
    if (!block) return;
    for (size_t i = 0; i < block->bytes; ++i) require(block->start[i] == block->mark, "a block keeps its contents");
    memory_release(block->start);
    delete block;
}

static void work(unsigned seed) {
    std::mt19937 random(seed);
    while (!stopped) {
        Block* block = random() % 3 ? take(random) : nullptr;
        release(slots[random() % SLOTS].exchange(block));  // whoever made it
        blocks::Counts counts;
        switch (random() % 256) {
            case 0: memory_give_back(); break;
            case 1: memory_limit(CAP - (random() % 32 << 20), random() % CAP); break;
            case 2: memory_trace(random() % 2); break;
            case 3: memory_reset_peaks(); break;
            default:
                memory_counts(&counts);
                require(0 <= counts.live && counts.live <= counts.held, "what is live is held");
                require(counts.live <= counts.live_peak && counts.held <= counts.held_peak, "a peak is the most");
                require(counts.held_peak <= int64_t(CAP), "held stays within the cap");
        }
    }
}

static void fork_once() {
    const pid_t child = fork();
    if (child == 0) {
        std::mt19937 random(1);
        memory_limit(SIZE_MAX, SIZE_MAX);
        for (int i = 0; i < 20; ++i) release(take(random));
        _exit(0);
    }
    int status = 1;
    waitpid(child, &status, 0);
    require(status == 0, "a child takes and frees blocks");
}

int main(int, char** arguments) {
    memory_limit(CAP, SIZE_MAX);
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(atoi(arguments[1]));
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < THREADS; ++i) threads.emplace_back(work, i);
    long forks = 0;
    for (; std::chrono::steady_clock::now() < until; ++forks) {
        fork_once();
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    stopped = true;
    for (auto& thread : threads) thread.join();
    for (auto& slot : slots) release(slot.exchange(nullptr));
    memory_give_back();
    memory_trace(0);
    blocks::Counts counts;
    memory_counts(&counts);
    require(counts.live == 0 && counts.held == 0, "nothing is left");
    require(counts.moved > 0 || !blocks::Pages::can_move(), "pages were moved");
    require(taken > 100 && refused > 0 && forks > 0, "something was done");
    const long moved = counts.moved >> 20;
    printf("%ld taken, %ld refused, %ld forks, %ld MB moved\n", taken.load(), refused.load(), forks, moved);
}
