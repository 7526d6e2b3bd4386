#include "cuda/c_interface.h"

#include <cuda_runtime_api.h>

#include <cstring>

#include "cuda/check.h"
#include "cuda/layer.h"
#include "cuda/plan.h"

namespace {

using namespace bnpass;
using collective::guarded;
using cuda::check;

constexpr size_t kPage = 256;  // bytes to which parts of the workspace are rounded

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

size_t rounded(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

Element element_of(int number) {
  const auto element = static_cast<Element>(number);
  if (size_of(element) == 0 || element == Element::i64) {
    throw Error("element type " + std::to_string(number) + " is none of float16, bfloat16, float and double");
  }
  return element;
}

Geometry geometry_of(const bnpass_cuda_tensor& tensor) {
  const std::vector<int64_t> dims(tensor.dims, tensor.dims + tensor.rank);
  const Geometry found = geometry(dims, tensor.axis, tensor.virtual_batch_size);
  if (found.size() == 0) throw Error("X is empty");
  return found;
}

cuda::Vector vector_of(const bnpass_cuda_vector& given) {
  if (given.data == nullptr) return {};
  return {given.data, element_of(given.element)};
}

cuda::Output output_of(const bnpass_cuda_vector& given) {
  if (given.data == nullptr) return {};
  return {given.data, element_of(given.element)};
}

/// A tensor, and where its kernels run.
struct Job {
  Geometry geometry;
  Element element;
  cuda::Queue queue;

  Job(const bnpass_cuda_tensor& tensor, void* workspace, void* stream)
      : geometry(geometry_of(tensor)), element(element_of(tensor.element)) {
    queue.stream = stream_of(stream);
    queue.processors = cuda::processors();
    if (workspace == nullptr) return;
    const size_t counters = rounded(cuda::needs(geometry, element, queue.processors).counters);
    queue.partials.counters = static_cast<unsigned*>(workspace);
    queue.partials.pairs = reinterpret_cast<cuda::Pair*>(static_cast<char*>(workspace) + counters);
  }
};

}  // namespace

int bnpass_cuda_device_count(int* count) {
  return guarded([&] { check(cudaGetDeviceCount(count), "no device can be counted"); });
}

int bnpass_cuda_device_of(int device, bnpass_cuda_device* found) {
  return guarded([&] {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device), "a device does not tell what it is");
    std::memcpy(found->name, properties.name, sizeof found->name);
    found->major = properties.major;
    found->minor = properties.minor;
    found->processors = properties.multiProcessorCount;
    found->memory = properties.totalGlobalMem;
    found->l2 = static_cast<size_t>(properties.l2CacheSize);
  });
}

int bnpass_cuda_allocate(size_t bytes, void** memory) {
  return guarded([&] { check(cudaMalloc(memory, bytes), "memory cannot be allocated"); });
}

int bnpass_cuda_free(void* memory) {
  return guarded([&] { check(cudaFree(memory), "memory cannot be freed"); });
}

int bnpass_cuda_copy(void* to, const void* from, size_t bytes, void* stream) {
  return guarded([&] {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(stream)), "memory cannot be copied");
  });
}

int bnpass_cuda_fill(void* to, int byte, size_t bytes, void* stream) {
  return guarded([&] { check(cudaMemsetAsync(to, byte, bytes, stream_of(stream)), "memory cannot be filled"); });
}

int bnpass_cuda_stream_create(void** stream) {
  return guarded([&] {
    cudaStream_t made = nullptr;
    check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "a stream cannot be made");
    *stream = made;
  });
}

int bnpass_cuda_stream_destroy(void* stream) {
  return guarded([&] { check(cudaStreamDestroy(stream_of(stream)), "a stream cannot be destroyed"); });
}

int bnpass_cuda_stream_synchronize(void* stream) {
  return guarded([&] { check(cudaStreamSynchronize(stream_of(stream)), "a stream ended with an error"); });
}

int bnpass_cuda_event_create(void** event) {
  return guarded([&] {
    cudaEvent_t made = nullptr;
    check(cudaEventCreateWithFlags(&made, cudaEventDefault), "an event cannot be made");
    *event = made;
  });
}

int bnpass_cuda_event_destroy(void* event) {
  return guarded([&] { check(cudaEventDestroy(static_cast<cudaEvent_t>(event)), "an event cannot be destroyed"); });
}

int bnpass_cuda_event_record(void* event, void* stream) {
  return guarded([&] {
    check(cudaEventRecord(static_cast<cudaEvent_t>(event), stream_of(stream)), "an event cannot be recorded");
  });
}

int bnpass_cuda_event_elapsed(void* from, void* to, double* seconds) {
  return guarded([&] {
    float milliseconds = 0;
    check(cudaEventSynchronize(static_cast<cudaEvent_t>(to)), "a stream ended with an error");
    check(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(from), static_cast<cudaEvent_t>(to)),
          "no time between events");
    *seconds = static_cast<double>(milliseconds) * 1e-3;
  });
}

int bnpass_cuda_graph_begin(void* stream) {
  return guarded([&] {
    check(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal), "no capture can begin");
  });
}

int bnpass_cuda_graph_end(void* stream, void** graph) {
  return guarded([&] {
    cudaGraph_t captured = nullptr;
    cudaGraphExec_t made = nullptr;
    check(cudaStreamEndCapture(stream_of(stream), &captured), "the capture failed");
    const cudaError_t result = cudaGraphInstantiate(&made, captured, 0);
    cudaGraphDestroy(captured);
    check(result, "the graph cannot be made");
    *graph = made;
  });
}

int bnpass_cuda_graph_launch(void* graph, void* stream) {
  return guarded([&] {
    check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream_of(stream)), "a graph cannot be launched");
  });
}

int bnpass_cuda_graph_free(void* graph) {
  return guarded([&] { check(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)), "a graph cannot be freed"); });
}

int bnpass_cuda_workspace(const bnpass_cuda_tensor* tensor, size_t* bytes) {
  return guarded([&] {
    const cuda::Needs needs = cuda::needs(geometry_of(*tensor), element_of(tensor->element), cuda::processors());
    *bytes = rounded(needs.counters) + needs.partials;
  });
}

int bnpass_cuda_moments(const bnpass_cuda_tensor* tensor, const void* X, double* mean, double* square_sum,
                        void* workspace, void* stream) {
  return guarded([&] {
    const Job job(*tensor, workspace, stream);
    cuda::Statistics to;
    to.channels = static_cast<int64_t>(job.geometry.channels);
    to.groups = static_cast<int64_t>(job.geometry.groups);
    to.mean = mean;
    to.square_sum = square_sum;
    cuda::moments(job.queue, job.geometry, job.element, X, to);
  });
}

int bnpass_cuda_normalize(const bnpass_cuda_tensor* tensor, const void* X, const double* mean, const double* factor,
                          const double* B, void* Y, void* stream) {
  return guarded([&] {
    const Job job(*tensor, nullptr, stream);
    cuda::normalize(job.queue, job.geometry, job.element, X, mean, factor, {B, Element::f64}, Y);
  });
}

int bnpass_cuda_gradient_sums(const bnpass_cuda_tensor* tensor, const void* dY, const void* X, const double* mean,
                              double* sum_dY, double* sum_dYX, void* workspace, void* stream) {
  return guarded([&] {
    const Job job(*tensor, workspace, stream);
    cuda::Gradient to;
    to.channels = static_cast<int64_t>(job.geometry.channels);
    to.groups = static_cast<int64_t>(job.geometry.groups);
    to.sum_dY = sum_dY;
    to.sum_dYX = sum_dYX;
    cuda::gradient_sums(job.queue, job.geometry, job.element, dY, X, mean, to);
  });
}

int bnpass_cuda_gradient_apply(const bnpass_cuda_tensor* tensor, const void* dY, const void* X, const double* mean,
                               const double* factor, const double* shift, const double* slope, void* dX,
                               void* stream) {
  return guarded([&] {
    const Job job(*tensor, nullptr, stream);
    cuda::gradient_apply(job.queue, job.geometry, job.element, dY, X, mean, factor, shift, slope, nullptr, dX);
  });
}

int bnpass_cuda_forward(const bnpass_cuda_tensor* tensor, const bnpass_cuda_forward_arguments* arguments,
                        void* workspace, void* stream) {
  return guarded([&] {
    const Job job(*tensor, workspace, stream);
    const auto& a = *arguments;
    cuda::Statistics to;
    to.channels = static_cast<int64_t>(job.geometry.channels);
    to.groups = static_cast<int64_t>(job.geometry.groups);
    to.epsilon = a.epsilon;
    to.scale = vector_of(a.scale);
    to.mean = a.mean;
    to.var = a.var;
    to.inv_std = a.inv_std;
    to.factor = a.factor;
    to.count = a.count;
    to.running = {vector_of(a.input_mean), vector_of(a.input_var),           output_of(a.running_mean),
                  output_of(a.running_var), a.momentum, static_cast<double>(a.correction)};
    cuda::forward(job.queue, job.geometry, job.element, a.X, to, vector_of(a.B), a.Y);
  });
}

int bnpass_cuda_backward(const bnpass_cuda_tensor* tensor, const bnpass_cuda_backward_arguments* arguments,
                         void* workspace, void* stream) {
  return guarded([&] {
    const Job job(*tensor, workspace, stream);
    const auto& a = *arguments;
    cuda::Gradient to;
    to.channels = static_cast<int64_t>(job.geometry.channels);
    to.groups = static_cast<int64_t>(job.geometry.groups);
    to.scale = vector_of(a.scale);
    to.inv_std = a.inv_std;
    to.count = a.count;
    to.sum_dY = a.sum_dY;
    to.sum_dYX = a.sum_dYX;
    to.factor = a.factor;
    to.shift = a.shift;
    to.slope = a.slope;
    to.dscale = output_of(a.dscale);
    to.dB = output_of(a.dB);
    cuda::backward(job.queue, job.geometry, job.element, a.dY, a.X, a.mean, to, a.dX);
  });
}
