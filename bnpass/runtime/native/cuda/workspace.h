// The memory that a kernel of ONNX Runtime works in: taken from ONNX Runtime in the first runs, grown where it must be,
// and given back with the kernel, never before. So its addresses stay what they are, as a CUDA graph needs it.
//
// A run leases a block for the stream it is on. Two runs at the same time get two blocks; a block that was used on a
// stream is lent to that stream alone, whose order keeps one run's kernels off the other's numbers.
#pragma once

#include <cuda_runtime_api.h>

#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda/batch_norm.h"
#include "ort/node.h"

namespace bnpass::cuda {

/// Returns whether work on the stream is being captured for a graph.
bool is_capturing(cudaStream_t stream);

/// How much of each kind a run needs.
struct Request {
  size_t counters = 0;  ///< Bytes.
  size_t partials = 0;  ///< Bytes.
  size_t doubles = 0;   ///< Vectors of all kinds, in doubles.
  size_t staging = 0;   ///< Bytes of host memory that the device can copy from.
};

class Workspace {
 public:
  explicit Workspace(const ort::Node& node);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  /// Memory in use by one run; the kernel may use it again behind this.
  class Lease;
  std::unique_ptr<Lease> lease(cudaStream_t stream, const Request& request);

 private:
  struct Block {
    cudaStream_t stream = nullptr;
    bool busy = false;
    void* counters = nullptr;
    void* partials = nullptr;
    void* doubles = nullptr;
    void* staging = nullptr;
    Request size;
  };

  Block& take(cudaStream_t stream);
  void grow(Block& block, const Request& request);
  void grow_device(const Block& block, size_t wanted, size_t& size, void*& memory);
  void give_back(Block& block);

  const ort::Api api_;
  ort::Allocator* allocator_ = nullptr;
  std::mutex mutex_;
  std::deque<Block> blocks_;
  std::vector<void*> device_memory_, host_memory_;
};

class Workspace::Lease {
 public:
  Lease(Workspace& owner, Block& block);
  ~Lease() { owner_.give_back(block_); }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  Queue queue() const;
  cudaStream_t stream() const { return block_.stream; }
  /// The next `length` doubles of the block.
  double* doubles(size_t length);
  void* staging() const { return block_.staging; }

 private:
  Workspace& owner_;
  Block& block_;
  size_t used_ = 0;
};

}  // namespace bnpass::cuda
