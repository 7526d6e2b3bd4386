// Times the functions of cpu/batch_norm.h against the memory: medians of interleaved rounds, as ratios to the floor
// of the bytes that must move, at the bandwidth of a copy with as many threads, measured in the same rounds.
//
//   cpu_speed [threads = 2] [rounds = 21] [element = f32] [clock = wall] [shape]
//
// Each time is a median, with its ratio to the floor; in brackets the ratio of the shortest times, for what it tells
// where others work on the machine. clock = cpu counts the processor time of the threads, divided by their number.
//
// Floors, per element: forward 2 reads and 1 write, backward 4 reads and 1 write, moments 1 read, normalize 1 read and
// 1 write, gradient_sums 2 reads, gradient_apply 2 reads and 1 write. A copy is 1 read and 1 write.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/geometry.h"
#include "cpu/batch_norm.h"

namespace {

using bnpass::Element;
using bnpass::Geometry;
using bnpass::Parallel;
namespace cpu = bnpass::cpu;

/// Threads that wait for work without sleeping and begin with a shard of their own, as those of a session do.
class Pool final : public Parallel {
 public:
  explicit Pool(size_t n) : shards_(n) {
    for (size_t i = 1; i < n; ++i) threads_.emplace_back([this, i] { serve(i); });
  }
  ~Pool() override {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
  }

  /// The processor time of all threads in tasks so far, divided by their number.
  double cpu_seconds() const {
    return 1e-9 * static_cast<double>(nanoseconds_) / static_cast<double>(threads_.size() + 1);
  }

  void run(size_t tasks, Task task, void* data) override {
    task_ = task, data_ = data;
    const size_t n = shards_.size();
    for (size_t i = 0; i < n; ++i) shards_[i].next = i * tasks / n, shards_[i].end = (i + 1) * tasks / n;
    busy_ = threads_.size();
    ++round_;
    work(0);
    while (busy_ > 0) pause();
  }

 private:
  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }
  static int64_t thread_nanoseconds() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * int64_t{1000000000} + now.tv_nsec;
  }
  /// Does the tasks of a thread's own shard, and what others have not come to.
  void work(size_t thread) {
    const int64_t start = thread_nanoseconds();
    for (size_t i = 0; i < shards_.size(); ++i) {
      Shard& shard = shards_[(thread + i) % shards_.size()];
      for (size_t index; (index = shard.next++) < shard.end;) task_(data_, index);
    }
    nanoseconds_ += thread_nanoseconds() - start;
  }
  void serve(size_t thread) {
    for (size_t seen = 0;;) {
      while (round_ == seen) {
        if (stop_) return;
        pause();
      }
      ++seen;
      work(thread);
      --busy_;
    }
  }

  Task task_ = nullptr;
  void* data_ = nullptr;
  struct alignas(64) Shard {
    std::atomic<size_t> next{0};
    size_t end = 0;
  };
  std::vector<Shard> shards_;
  std::atomic<size_t> round_{0}, busy_{0};
  std::atomic<int64_t> nanoseconds_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

/// Page-aligned memory that has been written to.
class Memory {
 public:
  explicit Memory(size_t bytes) : data_(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096)) {
    std::memset(data_, 1, bytes);
  }
  ~Memory() { std::free(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

/// Copies past the caches.
void copy(const char* from, char* to, size_t bytes) {
#if defined(__x86_64__)
  for (size_t i = 0; i < bytes; i += 64) {
    for (size_t j = 0; j < 64; j += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i + j),
                       _mm_load_si128(reinterpret_cast<const __m128i*>(from + i + j)));
    }
  }
  _mm_sfence();
#else
  std::memcpy(to, from, bytes);
#endif
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

double least(const std::vector<double>& values) { return *std::min_element(values.begin(), values.end()); }

struct Layer {
  const char* name;
  size_t N, C, spatial;
};

constexpr Layer layers[] = {{"32x64x112x112", 32, 64, 112 * 112}, {"32x256x56x56", 32, 256, 56 * 56},
                            {"16x64x56x56", 16, 64, 56 * 56},     {"32x512x14x14", 32, 512, 14 * 14},
                            {"4x2048x7x7", 4, 2048, 49},          {"256x1024", 256, 1024, 1}};

constexpr size_t copied = size_t{128} << 20;

class Run {
 public:
  Run(size_t threads, size_t rounds, Element element, bool cpu_clock)
      : pool_(threads), rounds_(rounds), element_(element), cpu_clock_(cpu_clock), from_(copied), to_(copied) {}

  void layer(const Layer& layer, bool channels_last) {
    const Geometry g{layer.N, 1, channels_last ? layer.spatial : 1, layer.C, channels_last ? 1 : layer.spatial};
    const size_t bytes = g.size() * size_of(element_);
    const Memory X(bytes), dY(bytes), Y(bytes);
    std::vector<double> values(g.size());
    std::mt19937 random(1);
    std::normal_distribution<double> normal;
    for (double& value : values) value = normal(random);
    cpu::from_double(element_, values.data(), X.data(), g.size());
    cpu::from_double(element_, values.data(), dY.data(), g.size());
    const size_t C = layer.C;
    std::vector<double> scale(C, 1.5), B(C, 0.5), mean(C), var(C), inv_std(C), a(C), b(C);
    const auto count = static_cast<double>(g.count());
    const std::vector<Timed> timed = {
        {"forward", 3,
         [&] {
           cpu::forward(pool_, g, element_, X.data(), scale.data(), B.data(), 1e-3, mean.data(), var.data(),
                        inv_std.data(), Y.data());
         }},
        {"backward", 5,
         [&] {
           cpu::backward(pool_, g, element_, dY.data(), X.data(), scale.data(), mean.data(), inv_std.data(), count,
                         a.data(), b.data(), Y.data());
         }},
        {"moments", 1, [&] { cpu::moments(pool_, g, element_, X.data(), mean.data(), var.data()); }},
        {"normalize", 2,
         [&] {
           cpu::normalize(pool_, g, element_, X.data(), mean.data(), inv_std.data(), B.data(), Y.data());
         }},
        {"grad_sums", 2,
         [&] { cpu::gradient_sums(pool_, g, element_, dY.data(), X.data(), mean.data(), a.data(), b.data()); }},
        {"grad_apply", 3,
         [&] {
           cpu::gradient_apply(pool_, g, element_, dY.data(), X.data(), mean.data(), inv_std.data(), a.data(), b.data(),
                               Y.data());
         }},
    };
    report(layer.name, channels_last ? "NHWC" : "NCHW", bytes, timed);
  }

 private:
  struct Timed {
    const char* name;
    double moves;  ///< Of the tensor, between memory and processor.
    std::function<void()> body;
  };

  double seconds(const std::function<void()>& body) {
    const auto start = std::chrono::steady_clock::now();
    const double cpu = pool_.cpu_seconds();
    body();
    return cpu_clock_ ? pool_.cpu_seconds() - cpu
                      : std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  void copy_once() {
    constexpr size_t parts = 64;
    auto part = [&](size_t i) {
      copy(static_cast<const char*>(from_.data()) + i * (copied / parts),
           static_cast<char*>(to_.data()) + i * (copied / parts), copied / parts);
    };
    pool_.each(parts, part);
  }

  void report(const char* name, const char* layout, size_t bytes, const std::vector<Timed>& timed) {
    std::vector<std::vector<double>> times(timed.size());
    std::vector<double> copies;
    const size_t repeats = std::max<size_t>(1, (size_t{16} << 20) / bytes);
    for (size_t round = 0; round < rounds_; ++round) {
      copies.push_back(seconds([&] { copy_once(); }));
      for (size_t i = 0; i < timed.size(); ++i) {
        timed[i].body();  // into the caches, where it fits
        times[i].push_back(seconds([&] {
                             for (size_t r = 0; r < repeats; ++r) timed[i].body();
                           }) /
                           static_cast<double>(repeats));
      }
    }
    const double bandwidth = 2 * static_cast<double>(copied) / median(copies);
    std::printf("%-14s %s %5.1f GB/s", name, layout, bandwidth * 1e-9);
    for (size_t i = 0; i < timed.size(); ++i) {
      const double moved = timed[i].moves * static_cast<double>(bytes) / (2 * static_cast<double>(copied));
      std::printf("  %s %7.3f ms %.2f (%.2f)", timed[i].name, median(times[i]) * 1e3,
                  median(times[i]) / median(copies) / moved, least(times[i]) / least(copies) / moved);
    }
    std::printf("\n");
    std::fflush(stdout);
  }

  Pool pool_;
  size_t rounds_;
  Element element_;
  bool cpu_clock_;
  Memory from_, to_;
};

Element element_named(const std::string& name) {
  if (name == "f16") return Element::f16;
  if (name == "bf16") return Element::bf16;
  return name == "f64" ? Element::f64 : Element::f32;
}

}  // namespace

int main(int argc, char** argv) {
  const size_t threads = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 2;
  const size_t rounds = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 21;
  const std::string element = argc > 3 ? argv[3] : "f32", clock = argc > 4 ? argv[4] : "wall";
  const std::string only = argc > 5 ? argv[5] : "";
  std::printf("%s, %zu threads, %s, %zu rounds, %s clock: time and ratio to the floor\n", cpu::instructions(), threads,
              element.c_str(), rounds, clock.c_str());
  Run run(threads, rounds, element_named(element), clock == "cpu");
  for (const Layer& layer : layers) {
    if (!only.empty() && only != layer.name) continue;
    run.layer(layer, false);
    run.layer(layer, true);
  }
}
