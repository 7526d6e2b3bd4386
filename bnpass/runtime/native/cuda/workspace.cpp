#include "cuda/workspace.h"

#include <algorithm>

#include "cuda/check.h"

namespace bnpass::cuda {
namespace {

constexpr size_t kLeast = 256;  // bytes

}  // namespace

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "a stream does not tell whether it is captured");
  return status != cudaStreamCaptureStatusNone;
}

Workspace::Workspace(const ort::Node& node) : api_(node.api()) {
  api_.call<ort::KernelInfoGetAllocator>(node.info(), ort::memory_default, &allocator_);
}

Workspace::~Workspace() {
  std::string ignored;
  for (void* memory : device_memory_) api_.tries<ort::AllocatorFree>(ignored, allocator_, memory);
  for (void* memory : host_memory_) cudaFreeHost(memory);
  api_.release<ort::ReleaseAllocator>(allocator_);
}

std::unique_ptr<Workspace::Lease> Workspace::lease(cudaStream_t stream, const Request& request) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Block& block = take(stream);
  try {
    grow(block, request);
  } catch (...) {
    block.busy = false;
    throw;
  }
  return std::make_unique<Lease>(*this, block);
}

Workspace::Block& Workspace::take(cudaStream_t stream) {
  const auto fits = [stream](const Block& block) { return !block.busy && block.stream == stream; };
  auto found = std::find_if(blocks_.begin(), blocks_.end(), fits);
  if (found == blocks_.end()) {
    blocks_.emplace_back();
    found = std::prev(blocks_.end());
    found->stream = stream;
  }
  found->busy = true;
  return *found;
}

void Workspace::grow(Block& block, const Request& request) {
  const size_t counters = block.size.counters;
  grow_device(block, request.counters, block.size.counters, block.counters);
  grow_device(block, request.partials, block.size.partials, block.partials);
  size_t bytes = block.size.doubles * sizeof(double);
  grow_device(block, request.doubles * sizeof(double), bytes, block.doubles);
  block.size.doubles = bytes / sizeof(double);
  if (block.size.counters != counters) {
    check(cudaMemsetAsync(block.counters, 0, block.size.counters, block.stream), "counters cannot be set to 0");
  }
  if (request.staging <= block.size.staging) return;
  void* host = nullptr;
  check(cudaHostAlloc(&host, request.staging, cudaHostAllocDefault), "no host memory for the message");
  host_memory_.push_back(host);
  block.staging = host;
  block.size.staging = request.staging;
}

void Workspace::grow_device(const Block& block, size_t wanted, size_t& size, void*& memory) {
  if (wanted <= size) return;
  if (is_capturing(block.stream)) {
    throw Error("memory cannot be allocated while a CUDA graph is captured: run the model once before, on the same "
                "stream and with the same shapes",
                Code::runtime);
  }
  const size_t bytes = std::max({kLeast, wanted, size * 2});
  void* made = nullptr;
  api_.call<ort::AllocatorAlloc>(allocator_, bytes, &made);
  device_memory_.push_back(made);  // what was there before is kept: kernels or graphs may still use it
  memory = made;
  size = bytes;
}

void Workspace::give_back(Block& block) {
  const std::lock_guard<std::mutex> lock(mutex_);
  block.busy = false;
}

Workspace::Lease::Lease(Workspace& owner, Block& block) : owner_(owner), block_(block) {}

Queue Workspace::Lease::queue() const {
  return {block_.stream, processors(),
          {static_cast<Pair*>(block_.partials), static_cast<unsigned*>(block_.counters)}};
}

double* Workspace::Lease::doubles(size_t length) {
  double* first = static_cast<double*>(block_.doubles) + used_;
  used_ += length;
  return first;
}

}  // namespace bnpass::cuda
