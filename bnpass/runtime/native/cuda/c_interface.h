// The kernels on plain device buffers, for Python by ctypes: a machine with a GPU verifies and times them without an
// ONNX Runtime that has CUDA. Functions return 0 or a Code of core/error.h, and then bnpass_last_error() says why.
//
// Pointers to tensors are device memory, 256-byte aligned or not; stream is a cudaStream_t. A vector is float or
// double, as its element says; an output that is null is not written.
#pragma once

#include <cstddef>
#include <cstdint>

#include "collective/c_interface.h"

extern "C" {

struct bnpass_cuda_device {
  char name[256];
  int major, minor, processors;
  size_t memory, l2;  ///< Bytes.
};

/// A tensor: dimensions [rank], the number of its ONNX type.
struct bnpass_cuda_tensor {
  const int64_t* dims;
  size_t rank;
  int64_t axis, virtual_batch_size;
  int element;
};

struct bnpass_cuda_vector {
  void* data;
  int element;
};

/// A training step of SyncBatchNormalization on one replica. mean, inv_std: [groups, channels] and needed, in double,
/// as are scratch vectors var and factor.
struct bnpass_cuda_forward_arguments {
  const void* X;
  bnpass_cuda_vector scale, B, input_mean, input_var, running_mean, running_var;
  double epsilon, momentum;
  int correction;
  double *mean, *inv_std, *var, *factor, *count;
  void* Y;
};

/// SyncBatchNormalizationGrad on one replica. sum_dY, sum_dYX, factor, shift, slope: scratch vectors [groups,
/// channels].
struct bnpass_cuda_backward_arguments {
  const void *dY, *X;
  bnpass_cuda_vector scale, dscale, dB;
  const double *mean, *inv_std, *count;
  double *sum_dY, *sum_dYX, *factor, *shift, *slope;
  void* dX;
};

BNPASS_EXPORT int bnpass_cuda_device_count(int* count);
BNPASS_EXPORT int bnpass_cuda_device_of(int device, bnpass_cuda_device* found);
BNPASS_EXPORT int bnpass_cuda_allocate(size_t bytes, void** memory);
BNPASS_EXPORT int bnpass_cuda_free(void* memory);
/// Between host and device in any direction.
BNPASS_EXPORT int bnpass_cuda_copy(void* to, const void* from, size_t bytes, void* stream);
BNPASS_EXPORT int bnpass_cuda_fill(void* to, int byte, size_t bytes, void* stream);
BNPASS_EXPORT int bnpass_cuda_stream_create(void** stream);
BNPASS_EXPORT int bnpass_cuda_stream_destroy(void* stream);
BNPASS_EXPORT int bnpass_cuda_stream_synchronize(void* stream);

/// Times: events are recorded on a stream; elapsed waits for the second and writes seconds.
BNPASS_EXPORT int bnpass_cuda_event_create(void** event);
BNPASS_EXPORT int bnpass_cuda_event_destroy(void* event);
BNPASS_EXPORT int bnpass_cuda_event_record(void* event, void* stream);
BNPASS_EXPORT int bnpass_cuda_event_elapsed(void* from, void* to, double* seconds);

/// What is launched between begin and end becomes a graph.
BNPASS_EXPORT int bnpass_cuda_graph_begin(void* stream);
BNPASS_EXPORT int bnpass_cuda_graph_end(void* stream, void** graph);
BNPASS_EXPORT int bnpass_cuda_graph_launch(void* graph, void* stream);
BNPASS_EXPORT int bnpass_cuda_graph_free(void* graph);

/// Bytes of workspace that the functions below need for a tensor. It must be filled with 0 once.
BNPASS_EXPORT int bnpass_cuda_workspace(const bnpass_cuda_tensor* tensor, size_t* bytes);
BNPASS_EXPORT int bnpass_cuda_moments(const bnpass_cuda_tensor* tensor, const void* X, double* mean,
                                      double* square_sum, void* workspace, void* stream);
BNPASS_EXPORT int bnpass_cuda_normalize(const bnpass_cuda_tensor* tensor, const void* X, const double* mean,
                                        const double* factor, const double* B, void* Y, void* stream);
BNPASS_EXPORT int bnpass_cuda_gradient_sums(const bnpass_cuda_tensor* tensor, const void* dY, const void* X,
                                            const double* mean, double* sum_dY, double* sum_dYX, void* workspace,
                                            void* stream);
BNPASS_EXPORT int bnpass_cuda_gradient_apply(const bnpass_cuda_tensor* tensor, const void* dY, const void* X,
                                             const double* mean, const double* factor, const double* shift,
                                             const double* slope, void* dX, void* stream);
BNPASS_EXPORT int bnpass_cuda_forward(const bnpass_cuda_tensor* tensor, const bnpass_cuda_forward_arguments* arguments,
                                      void* workspace, void* stream);
BNPASS_EXPORT int bnpass_cuda_backward(const bnpass_cuda_tensor* tensor,
                                       const bnpass_cuda_backward_arguments* arguments, void* workspace, void* stream);
}
