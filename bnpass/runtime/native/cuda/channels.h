// The steps between the passes over a tensor: small kernels with one thread per channel (and ghost batch), so that
// nothing per channel ever leaves the device.
//
// The message of the statistics is one, [M, n·mean, Σ(x − mean)² + n·mean²], and the messages for double X are two, [M,
// n·mean] and then the squares around the mean of all, as in ort/batch_statistics.h: CPU and GPU replicas may mix.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/arguments.h"

namespace bnpass::cuda {

/// Statistics that are given, or 0 if mean and var are null: mean and var, [channels] or, per_group, [groups,
/// channels]. count becomes 0, but what is given here if there is no channel at all.
void given_statistics(cudaStream_t stream, const Statistics& to, Vector mean, Vector var, bool per_group,
                      double count_of_nothing);

/// The running statistics of several ghost batches (or none) from mean and var, [groups, channels]. For one ghost batch
/// finish() has written them.
void running_statistics(cudaStream_t stream, const Running& running, int64_t channels, int64_t groups,
                        const double* mean, const double* var, const double* count);

/// What this replica has to say about its elements.
struct LocalMoments {
  int64_t length = 0;  ///< groups·channels.
  double count = 0;    ///< Elements; with 0 the vectors are not looked at.
  const double* mean = nullptr;
  const double* square_sum = nullptr;
};

/// Writes [n, n·mean, Σ(x − mean)² + n·mean²], 1 + 2·length; without squares [n, n·mean], 1 + length.
void pack_moments(cudaStream_t stream, const LocalMoments& local, bool squares, double* message);

/// Writes Σ(x − mean of all)², [length], once [M, Σ n·mean] is known.
void pack_squares(cudaStream_t stream, const LocalMoments& local, const double* message, double* squares);

/// Statistics from the sum of all messages. squares: null if they follow in the message. Where M = 0, the statistics
/// are input_mean and input_var, [channels], or 0 if those are null.
void unpack_moments(cudaStream_t stream, const Statistics& to, const double* message, const double* squares,
                    Vector input_mean, Vector input_var);

/// dscale = Σ inv_std·sum_dYX and dB = Σ sum_dY over the ghost batches, from sums over this replica.
void gradient_of_parameters(cudaStream_t stream, const Gradient& from);

/// factor, shift and slope from [S1, S2], sums over the group.
void unpack_gradient(cudaStream_t stream, const Gradient& to, const double* message);

/// Elements to what travels, and back. keys: maxima and minima of floats travel as integers of the same order, as in
/// collective/ordered_key.h. divisor: the sum is divided by it.
enum class Travel : int { as_float = 0, as_key_of_max = 1, as_key_of_min = 2 };
void to_wire(cudaStream_t stream, Element element, Travel travel, const void* X, void* wire, size_t length);
void from_wire(cudaStream_t stream, Element element, Travel travel, double divisor, const void* wire, void* Y,
               size_t length);
/// Y = X/divisor for float and double, in place.
void divide(cudaStream_t stream, Element element, double divisor, void* Y, size_t length);

/// Fills length words of 4 or 8 bytes with NaN (integers: with their least value) if *broken is not 0 when the stream
/// comes to it. broken: host memory that the device can read.
void poison_if(cudaStream_t stream, const int* broken, bool integer, size_t word, void* data, size_t length);

}  // namespace bnpass::cuda
