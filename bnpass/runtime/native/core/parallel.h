// Work that is cut into numbered tasks. How many there are depends on the shape alone, never on the threads: that keeps
// every sum, and so every result, the same for any number of threads.
#pragma once

#include <cstddef>

namespace bnpass {

class Parallel {
 public:
  using Task = void (*)(void* data, size_t index);

  virtual ~Parallel() = default;
  /// Calls task(data, i) for every i < tasks, in any order, on any thread; returns when all have returned.
  /// A task must not throw.
  virtual void run(size_t tasks, Task task, void* data) = 0;

  /// As run, for anything that can be called with an index.
  template <class F>
  void each(size_t tasks, F& body) {
    run(tasks, [](void* data, size_t index) { (*static_cast<F*>(data))(index); }, &body);
  }
};

/// One task behind the other.
class Serial final : public Parallel {
 public:
  void run(size_t tasks, Task task, void* data) override {
    for (size_t i = 0; i < tasks; ++i) task(data, i);
  }
};

}  // namespace bnpass
