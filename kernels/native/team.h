// A team of threads that work through one forward pass together, with a barrier after each operation.
//
// OpenMP would do, but its threads spin while they wait. A forward pass has some ten barriers a layer, and where another
// process wants a core, each of them then waits for the other's whole time slice: a pass takes forty times as long.
// These threads give their core away after a short spin, and sleep when nothing comes for a while.

#pragma once

#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

class Team {
  public:
    static Team& get() {
        static Team* team = new Team();  // never destroyed: its threads may outlive the statics of a process that ends
        return *team;
    }

    void resize(int n) {
        std::lock_guard<std::mutex> hold(running_);
        wanted_ = n < 1 ? 1 : n;
    }

    // Run `work` on all threads; returns when all are done.
    template <typename F>
    void run(F work) {
        std::lock_guard<std::mutex> hold(running_);
        assemble();
        tid() = 0;
        if (size_ == 1) return work();
        task_ = [](void* f) { (*(F*)f)(); };
        argument_ = &work;
        {
            std::lock_guard<std::mutex> wake(sleeping_);
            job_.fetch_add(1, std::memory_order_release);
        }
        if (asleep_.load(std::memory_order_acquire)) call_.notify_all();
        work();
        barrier();
    }

    // The calling thread's share of 0 .. n - 1, in one piece, from its begin to its end; then the barrier.
    template <typename F>
    void split(int n, F piece) {
        const int64_t t = tid();
        const int begin = (int)(n * t / size_), end = (int)(n * (t + 1) / size_);
        if (begin < end) piece(begin, end);
        barrier();
    }

    // The same, one by one.
    template <typename F>
    void share(int n, F one) {
        split(n, [&](int begin, int end) {
            for (int i = begin; i < end; i++) one(i);
        });
    }

    // 0 .. n - 1 one by one to whoever is free; then the barrier.
    template <typename F>
    void deal(int n, F one) {
        for (int i = next_.fetch_add(1, std::memory_order_relaxed); i < n;
             i = next_.fetch_add(1, std::memory_order_relaxed))
            one(i);
        barrier();
    }

    static int& tid() {
        static thread_local int id = 0;
        return id;
    }

    int wanted() const { return wanted_; }

  private:
    void barrier() {
        if (size_ == 1) {
            next_.store(0, std::memory_order_relaxed);
            return;
        }
        const unsigned phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            next_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
        } else {
            for (int i = 0; phase_.load(std::memory_order_acquire) == phase; i++) relax(i);
        }
    }

    static void relax(int i) {
        if (i < 2000) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        } else {
            sched_yield();
        }
    }

    // After a fork the threads are gone; after `resize` there are too many or too few.
    void assemble() {
        if (size_ == wanted_ && owner_ == getpid()) return;
        if (owner_ == getpid()) retire();
        owner_ = getpid();
        size_ = wanted_;
        arrived_ = 0;
        next_ = 0;
        const unsigned generation = ++generation_;
        for (int i = 1; i < size_; i++)
            std::thread([this, i, generation, job = job_.load()] { serve(i, generation, job); }).detach();
    }

    void retire() {
        std::lock_guard<std::mutex> wake(sleeping_);
        ++generation_;
        call_.notify_all();
    }

    void serve(int id, unsigned generation, unsigned seen) {
        tid() = id;
        while (await(generation, seen)) {
            seen++;
            task_(argument_);
            barrier();
        }
    }

    // Until the next job; false for a thread of an earlier team.
    bool await(unsigned generation, unsigned seen) {
        const auto start = std::chrono::steady_clock::now();
        for (int i = 0;; i++) {
            if (generation_.load(std::memory_order_acquire) != generation) return false;
            if (job_.load(std::memory_order_acquire) != seen) return true;
            relax(i);
            if (i > 2000 && std::chrono::steady_clock::now() - start > std::chrono::milliseconds(2)) {
                std::unique_lock<std::mutex> wait(sleeping_);
                asleep_.fetch_add(1, std::memory_order_acq_rel);
                call_.wait(wait, [&] { return job_.load() != seen || generation_.load() != generation; });
                asleep_.fetch_sub(1, std::memory_order_acq_rel);
            }
        }
    }

    std::mutex running_, sleeping_;
    std::condition_variable call_;
    std::atomic<unsigned> job_{0}, phase_{0}, generation_{0};
    std::atomic<int> arrived_{0}, next_{0}, asleep_{0};
    void (*task_)(void*) = nullptr;
    void* argument_ = nullptr;
    int size_ = 1, wanted_ = 1;
    pid_t owner_ = 0;
};
