// What a kernel is given in one run: tensors, and threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "ort/api.h"

namespace bnpass::ort {

using Dims = std::vector<int64_t>;

/// "[2, 3]".
std::string text_of(const Dims& dims);

class Context {
 public:
  Context(const Api& api, KernelContext* context) : api_(api), context_(context) {}

  Dims dims(size_t input) const;
  const void* data(size_t input) const;
  /// Allocates an output and returns its data; null if the node does not write it.
  void* output(size_t index, const Dims& dims) const;

  const Api& api() const { return api_; }
  KernelContext* raw() const { return context_; }

 private:
  const Value* input(size_t index) const;

  Api api_;
  KernelContext* context_;
};

/// ONNX Runtime's own threads: the pool of the session.
class SessionThreads final : public Parallel {
 public:
  explicit SessionThreads(const Context& context) : context_(context) {}
  void run(size_t tasks, Task task, void* data) override;

 private:
  const Context& context_;
};

}  // namespace bnpass::ort
