// Fibers, fake streams and memory (see cuda_runtime_api.h).
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#include "cuda_runtime.h"

#ifndef BNPASS_FAST_DOUBLE
#define BNPASS_FAST_DOUBLE 0
#endif

HostIndex threadIdx, blockIdx, gridDim;

namespace {

constexpr size_t kStack = 256 * 1024;

struct Fiber {
  std::vector<char> stack = std::vector<char>(kStack);
  ucontext_t context{};
  bool done = false;
};

std::mutex one_launch;
std::mt19937 random_order(20261120);
ucontext_t scheduler;
std::vector<std::unique_ptr<Fiber>> fibers;
size_t running = 0;
const std::function<void()>* kernel = nullptr;

void run_fiber() {
  (*kernel)();
  fibers[running]->done = true;
  swapcontext(&fibers[running]->context, &scheduler);
}

void fail(const char* sentence) {
  std::fprintf(stderr, "cuda_host: %s\n", sentence);
  std::abort();
}

/// Runs all threads of a block up to their next barrier, or to their end.
void run_phase(std::vector<unsigned>& order) {
  std::shuffle(order.begin(), order.end(), random_order);
  unsigned done = 0;
  for (const unsigned thread : order) {
    running = thread;
    threadIdx.x = thread;
    swapcontext(&scheduler, &fibers[thread]->context);
    done += fibers[thread]->done ? 1 : 0;
  }
  if (done != 0 && done != order.size()) fail("some threads of a block wait at a barrier, others have ended");
}

void run_block(unsigned threads) {
  while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  for (unsigned thread = 0; thread < threads; ++thread) {
    Fiber& fiber = *fibers[thread];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    fiber.done = false;
    makecontext(&fiber.context, run_fiber, 0);
  }
  while (!fibers[0]->done) run_phase(order);
}

}  // namespace

void __syncthreads() { swapcontext(&fibers[running]->context, &scheduler); }

void host_launch(unsigned blocks, unsigned threads, const std::function<void()>& body, cudaStream_t) {
  const std::lock_guard<std::mutex> lock(one_launch);
  kernel = &body;
  gridDim.x = blocks;
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random_order);
  for (const unsigned block : order) {
    blockIdx.x = block;
    run_block(threads);
  }
}

float half_to_float(uint16_t bits) {
  const double sign = bits & 0x8000 ? -1 : 1;
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 31) return mantissa != 0 ? NAN : static_cast<float>(sign * INFINITY);
  const double size = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return static_cast<float>(sign * size);
}

uint16_t float_to_half(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (value != value) return 0x7fff;
  const double size = std::fabs(static_cast<double>(value));
  if (size >= 65520) return sign | 0x7c00;
  if (size < std::ldexp(1, -14)) return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 24)));
  int exponent;
  const double fraction = std::frexp(size, &exponent);  // [0.5, 1)
  const auto mantissa = static_cast<int>(std::nearbyint(std::ldexp(fraction, 11)));  // 1024 to 2048
  return sign | static_cast<uint16_t>(((exponent + 14) << 10) + mantissa - 1024);
}

uint16_t float_to_bfloat16(float value) {
  if (value != value) return 0x7fff;
  const unsigned bits = __float_as_uint(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "not on the host"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int) {
  *found = {};
  found->major = BNPASS_FAST_DOUBLE ? 9 : 8;
  found->minor = BNPASS_FAST_DOUBLE ? 0 : 6;
  std::snprintf(found->name, sizeof found->name, "host (no GPU)");
  return cudaDeviceGetAttribute(&found->multiProcessorCount, cudaDevAttrMultiProcessorCount, 0);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  const char* given = std::getenv("BNPASS_HOST_PROCESSORS");
  *value = given == nullptr ? 1 : std::atoi(given);
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(*memory, 0xff, bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) { return cudaMalloc(memory, bytes); }
cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) { return *device = host, cudaSuccess; }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  return std::memmove(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return std::memset(to, value, bytes), cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = nullptr, cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) { return cudaErrorNotSupported; }
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*) { return cudaErrorNotSupported; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long) { return cudaErrorNotSupported; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return cudaErrorNotSupported; }
cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return *event = nullptr, cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) {  // a test may have messages that never end
  return std::getenv("BNPASS_HOST_PENDING") == nullptr ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  return *milliseconds = 1, cudaSuccess;
}
