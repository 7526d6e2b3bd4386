#include "cuda/channels.h"

#include "cuda/channel.h"
#include "cuda/launch.h"
#include "cuda/value.h"

namespace bnpass::cuda {
namespace {

__device__ int64_t thread_index() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }

/// Blocks for `threads` threads, at least one.
int64_t blocks_for(int64_t threads) { return threads < 1 ? 1 : (threads + kThreads - 1) / kThreads; }

/// Writes what belongs to no channel, for tensors that have none.
__device__ void finish_empty(const Statistics& to, double count) { write(to.count, 0, count); }

struct Given {
  Statistics to;
  Vector mean, var;
  bool per_group;
  double count_of_nothing;
};

__device__ double read_or_zero(Vector from, int64_t i) { return from.data == nullptr ? 0 : read(from, i); }

__global__ void given_kernel(const __grid_constant__ Given a) {
  const int64_t i = thread_index(), length = a.to.groups * a.to.channels;
  if (i == 0 && length == 0) finish_empty(a.to, a.count_of_nothing);
  if (i >= length) return;
  const int64_t c = i % a.to.channels, from = a.per_group ? i : c;
  finish(a.to, i / a.to.channels, c, read_or_zero(a.mean, from), read_or_zero(a.var, from), 0.0);
}

struct Average {
  Running running;
  int64_t channels, groups;
  const double *mean, *var, *count;
};

__global__ void average_kernel(const __grid_constant__ Average a) {
  const int64_t c = thread_index();
  if (c >= a.channels) return;
  double mean = 0, var = 0;
  for (int64_t g = 0; g < a.groups; ++g) {
    mean += a.mean[g * a.channels + c];
    var += a.var[g * a.channels + c];
  }
  const auto groups = static_cast<double>(a.groups);
  update(a.running, c, mean / groups, var / groups, a.groups == 0 ? 0.0 : *a.count);
}

struct Packing {
  LocalMoments local;
  bool with_squares;
  double* message;
};

__global__ void pack_kernel(const __grid_constant__ Packing a) {
  const int64_t i = thread_index(), length = a.local.length;
  if (i == 0) a.message[0] = a.local.count;
  if (i >= length) return;
  const bool any = a.local.count > 0;
  const double mean = any ? a.local.mean[i] : 0, sum = a.local.count * mean;
  a.message[1 + i] = sum;
  if (a.with_squares) a.message[1 + length + i] = any ? a.local.square_sum[i] + sum * mean : 0;
}

struct Squares {
  LocalMoments local;
  const double* message;
  double* squares;
};

__global__ void squares_kernel(const __grid_constant__ Squares a) {
  const int64_t i = thread_index();
  if (i >= a.local.length) return;
  const double count = a.local.count;
  const double away = count > 0 ? a.local.mean[i] - a.message[1 + i] / a.message[0] : 0;
  a.squares[i] = count > 0 ? a.local.square_sum[i] + count * away * away : 0;
}

struct Unpacking {
  Statistics to;
  const double *message, *squares;
  Vector input_mean, input_var;
};

__global__ void unpack_kernel(const __grid_constant__ Unpacking a) {
  const int64_t i = thread_index(), length = a.to.groups * a.to.channels;
  const double count = a.message[0];
  if (i == 0 && length == 0) finish_empty(a.to, count);
  if (i >= length) return;
  const int64_t group = i / a.to.channels, c = i % a.to.channels;
  if (count == 0) {
    finish(a.to, group, c, read_or_zero(a.input_mean, c), read_or_zero(a.input_var, c), 0.0);
    return;
  }
  const double mean = a.message[1 + i] / count;
  const double var = a.squares != nullptr ? a.squares[i] / count : a.message[1 + length + i] / count - mean * mean;
  finish(a.to, group, c, mean, var < 0 ? 0 : var, count);
}

__global__ void parameters_kernel(const __grid_constant__ Gradient a) {
  const int64_t c = thread_index();
  if (c >= a.channels) return;
  double dscale = 0, dB = 0;
  for (int64_t g = 0; g < a.groups; ++g) {
    const int64_t i = g * a.channels + c;
    dscale += a.inv_std[i] * a.sum_dYX[i];
    dB += a.sum_dY[i];
  }
  write(a.dscale, c, dscale);
  write(a.dB, c, dB);
}

struct GradientUnpacking {
  Gradient to;
  const double* message;
};

__global__ void gradient_kernel(const __grid_constant__ GradientUnpacking a) {
  const int64_t i = thread_index(), length = a.to.groups * a.to.channels;
  if (i < length) finish(a.to, i / a.to.channels, i % a.to.channels, a.message[i], a.message[length + i]);
}

__device__ double element_at(Element element, const void* X, int64_t i) {
  switch (element) {
    case Element::f16:
      return widen(static_cast<const Half*>(X)[i]);
    case Element::bf16:
      return widen(static_cast<const BFloat16*>(X)[i]);
    case Element::f32:
      return widen(static_cast<const float*>(X)[i]);
    default:
      return static_cast<const double*>(X)[i];
  }
}

__device__ void put_element(Element element, void* Y, int64_t i, double value) {
  switch (element) {
    case Element::f16:
      static_cast<Half*>(Y)[i] = narrow<Half>(value);
      break;
    case Element::bf16:
      static_cast<BFloat16*>(Y)[i] = narrow<BFloat16>(value);
      break;
    case Element::f32:
      static_cast<float*>(Y)[i] = narrow<float>(value);
      break;
    default:
      static_cast<double*>(Y)[i] = value;
  }
}

constexpr int64_t kLeast = INT64_MIN, kMost = INT64_MAX;

__device__ int64_t nan_key(Travel travel) { return travel == Travel::as_key_of_max ? kMost : kLeast; }

/// The magnitude of a negative number counts downwards.
__device__ int64_t turned(int64_t bits) { return bits < 0 ? bits ^ kMost : bits; }

struct Wires {
  Element element;
  Travel travel;
  double divisor;
  const void* from;
  void* to;
  int64_t length;
};

__global__ void to_wire_kernel(const __grid_constant__ Wires a) {
  const int64_t i = thread_index();
  if (i >= a.length) return;
  const double value = element_at(a.element, a.from, i);
  if (a.travel == Travel::as_float) {
    static_cast<float*>(a.to)[i] = static_cast<float>(value);
  } else {
    const int64_t key = value != value ? nan_key(a.travel) : turned(__double_as_longlong(value));
    static_cast<int64_t*>(a.to)[i] = key;
  }
}

__global__ void from_wire_kernel(const __grid_constant__ Wires a) {
  const int64_t i = thread_index();
  if (i >= a.length) return;
  double value;
  if (a.travel == Travel::as_float) {
    value = static_cast<double>(static_cast<const float*>(a.from)[i]) / a.divisor;
  } else {
    const int64_t key = static_cast<const int64_t*>(a.from)[i];
    value = __longlong_as_double(key == nan_key(a.travel) ? 0x7ff8000000000000LL : turned(key));
  }
  put_element(a.element, a.to, i, value);
}

__global__ void divide_kernel(const __grid_constant__ Wires a) {
  const int64_t i = thread_index();
  if (i < a.length) put_element(a.element, a.to, i, element_at(a.element, a.to, i) / a.divisor);
}

struct Poison {
  const int* broken;
  bool integer;
  size_t word;
  void* data;
  int64_t length;
};

__global__ void poison_kernel(const __grid_constant__ Poison a) {
  if (*static_cast<const volatile int*>(a.broken) == 0) return;
  const int64_t i = thread_index();
  if (i >= a.length) return;
  if (a.word == 4) {
    static_cast<unsigned*>(a.data)[i] = 0x7fc00000u;
  } else {
    static_cast<int64_t*>(a.data)[i] = a.integer ? kLeast : 0x7ff8000000000000LL;
  }
}

}  // namespace

void given_statistics(cudaStream_t stream, const Statistics& to, Vector mean, Vector var, bool per_group,
                      double count_of_nothing) {
  launch(given_kernel, blocks_for(to.groups * to.channels), stream, Given{to, mean, var, per_group, count_of_nothing});
}

void running_statistics(cudaStream_t stream, const Running& running, int64_t channels, int64_t groups,
                        const double* mean, const double* var, const double* count) {
  launch(average_kernel, blocks_for(channels), stream, Average{running, channels, groups, mean, var, count});
}

void pack_moments(cudaStream_t stream, const LocalMoments& local, bool squares, double* message) {
  launch(pack_kernel, blocks_for(local.length), stream, Packing{local, squares, message});
}

void pack_squares(cudaStream_t stream, const LocalMoments& local, const double* message, double* squares) {
  launch(squares_kernel, blocks_for(local.length), stream, Squares{local, message, squares});
}

void unpack_moments(cudaStream_t stream, const Statistics& to, const double* message, const double* squares,
                    Vector input_mean, Vector input_var) {
  launch(unpack_kernel, blocks_for(to.groups * to.channels), stream,
         Unpacking{to, message, squares, input_mean, input_var});
}

void gradient_of_parameters(cudaStream_t stream, const Gradient& from) {
  launch(parameters_kernel, blocks_for(from.channels), stream, from);
}

void unpack_gradient(cudaStream_t stream, const Gradient& to, const double* message) {
  launch(gradient_kernel, blocks_for(to.groups * to.channels), stream, GradientUnpacking{to, message});
}

void to_wire(cudaStream_t stream, Element element, Travel travel, const void* X, void* wire, size_t length) {
  const auto count = static_cast<int64_t>(length);
  launch(to_wire_kernel, blocks_for(count), stream, Wires{element, travel, 1, X, wire, count});
}

void from_wire(cudaStream_t stream, Element element, Travel travel, double divisor, const void* wire, void* Y,
               size_t length) {
  const auto count = static_cast<int64_t>(length);
  launch(from_wire_kernel, blocks_for(count), stream, Wires{element, travel, divisor, wire, Y, count});
}

void divide(cudaStream_t stream, Element element, double divisor, void* Y, size_t length) {
  const auto count = static_cast<int64_t>(length);
  launch(divide_kernel, blocks_for(count), stream, Wires{element, Travel::as_float, divisor, nullptr, Y, count});
}

void poison_if(cudaStream_t stream, const int* broken, bool integer, size_t word, void* data, size_t length) {
  const auto count = static_cast<int64_t>(length);
  launch(poison_kernel, blocks_for(count), stream, Poison{broken, integer, word, data, count});
}

}  // namespace bnpass::cuda
