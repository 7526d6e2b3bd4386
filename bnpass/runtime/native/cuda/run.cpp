#include "cuda/run.h"

#include <algorithm>

#include "cuda/channels.h"
#include "cuda/exchange.h"
#include "cuda/plan.h"
#include "ort/batch_statistics.h"

namespace bnpass::cuda {
namespace {

double count_of(const Geometry& geometry) { return static_cast<double>(geometry.count()); }

/// The statistics of this replica alone, as every message needs them.
LocalMoments local_moments(Workspace::Lease& lease, const Batch& batch) {
  const size_t length = batch.geometry.statistics();
  Statistics raw = statistics_for(batch.geometry);
  raw.mean = lease.doubles(length);
  raw.square_sum = lease.doubles(length);
  if (batch.geometry.size() > 0) moments(lease.queue(), batch.geometry, batch.element, batch.X, raw);
  return {static_cast<int64_t>(length), count_of(batch.geometry), raw.mean, raw.square_sum};
}

}  // namespace

cudaStream_t stream_of(const ort::Context& context) {
  void* stream = nullptr;
  context.api().call<ort::KernelContext_GetGPUComputeStream>(context.raw(), &stream);
  return static_cast<cudaStream_t>(stream);
}

Vector device_vector(const ort::Context& context, size_t input, const char* name, Element element,
                     const std::vector<ort::Dims>& allowed) {
  const ort::Dims found = context.dims(input);
  if (std::find(allowed.begin(), allowed.end(), found) == allowed.end()) {
    std::string expected;
    for (const ort::Dims& dims : allowed) expected += (expected.empty() ? "" : " or ") + ort::text_of(dims);
    throw Error(std::string(name) + " has the shape " + ort::text_of(found) + ", expected " + expected);
  }
  return {context.data(input), element};
}

Statistics statistics_for(const Geometry& geometry) {
  Statistics to;
  to.channels = static_cast<int64_t>(geometry.channels);
  to.groups = static_cast<int64_t>(geometry.groups);
  return to;
}

Request request_for(const Batch& batch, const ort::Membership& membership) {
  const Needs least = needs(batch.geometry, batch.element, processors());
  const size_t length = batch.geometry.statistics();
  Request request{least.counters, least.partials, 0, 0};
  if (!membership.shared()) return request;
  request.doubles = 2 * length + (1 + 2 * length) + length;  // local moments, message, squares
  if (goes_by_host(membership)) request.staging = (1 + 2 * length) * sizeof(double);
  return request;
}

void batch_statistics(Workspace::Lease& lease, const Batch& batch, const ort::Membership& membership,
                      const Statistics& to, Vector input_mean, Vector input_var) {
  const cudaStream_t stream = lease.stream();
  const size_t length = batch.geometry.statistics();
  if (!membership.shared()) {
    if (batch.geometry.size() > 0) return moments(lease.queue(), batch.geometry, batch.element, batch.X, to);
    return given_statistics(stream, to, input_mean, input_var, false, count_of(batch.geometry));
  }
  const bool one_message = batch.element != Element::f64;
  double* message = lease.doubles(1 + 2 * length);
  LocalMoments local;
  ort::locally(membership, [&] {
    local = local_moments(lease, batch);
    pack_moments(stream, local, one_message, message);
  });
  exchange(membership, lease, message, 1 + (one_message ? 2 : 1) * length);
  double* squares = nullptr;
  if (!one_message) {
    squares = lease.doubles(length);
    pack_squares(stream, local, message, squares);
    exchange(membership, lease, squares, length);
  }
  unpack_moments(stream, to, message, squares, input_mean, input_var);
}

}  // namespace bnpass::cuda
