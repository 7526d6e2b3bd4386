#include "cuda/exchange.h"

#include "collective/all_reduce.h"
#include "collective/device_group.h"
#include "cuda/channels.h"
#include "cuda/check.h"

namespace bnpass::cuda {
namespace {

using collective::Reduction;
using collective::Wire;

collective::DeviceGroup* device_group(const ort::Membership& membership) {
  return dynamic_cast<collective::DeviceGroup*>(membership.group.get());
}

/// Tells all replicas, and throws, if the message would have to be on the host now, but will only be in the graph.
void refuse_capture(const ort::Membership& membership, const collective::Call& call, cudaStream_t stream) {
  if (is_capturing(stream)) {
    membership.group->fail(
        call, "a CUDA graph cannot hold a message that goes by way of the host; take a group of kind nccl");
  }
}

void copy(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  if (bytes > 0 && to != from) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "no copy");
}

/// Brings bytes from the device to the host, runs body there, and brings them back.
template <class Body>
void on_host(const Workspace::Lease& lease, const void* from, void* to, size_t bytes, const Body& body) {
  copy(lease.staging(), from, bytes, lease.stream());
  check(cudaStreamSynchronize(lease.stream()), "the stream ended with an error");
  body(lease.staging());
  copy(to, lease.staging(), bytes, lease.stream());
}

Wire wire_of(Element element) {
  return element == Element::f64 ? Wire::f64 : element == Element::i64 ? Wire::i64 : Wire::f32;
}

/// AllReduce over a group that moves device memory.
void on_device(collective::DeviceGroup& group, collective::Call call, cudaStream_t stream, Element element,
               const std::string& reduction, const void* X, void* Y, void* wire) {
  const bool extremum = reduction == "max" || reduction == "min";
  const double divisor = reduction == "mean" ? group.size() : 1;
  call.reduction = reduction == "max" ? Reduction::max : reduction == "min" ? Reduction::min : Reduction::sum;
  const bool half = element == Element::f16 || element == Element::bf16;
  if (element == Element::i64 || (!extremum && !half)) {
    call.wire = wire_of(element);
    copy(Y, X, call.length * size_of(element), stream);
    group.all_reduce_device(call, Y, stream);
    if (divisor != 1) divide(stream, element, divisor, Y, call.length);
    return;
  }
  const Travel travel = !extremum                ? Travel::as_float
                        : reduction == "max" ? Travel::as_key_of_max
                                                 : Travel::as_key_of_min;
  call.wire = extremum ? Wire::i64 : Wire::f32;
  to_wire(stream, element, travel, X, wire, call.length);
  group.all_reduce_device(call, wire, stream);
  from_wire(stream, element, travel, divisor, wire, Y, call.length);
}

}  // namespace

bool goes_by_host(const ort::Membership& membership) {
  return membership.shared() && device_group(membership) == nullptr;
}

void exchange(const ort::Membership& membership, const Workspace::Lease& lease, double* message, size_t length) {
  collective::Call call = membership.call;
  call.wire = Wire::f64;
  call.reduction = Reduction::sum;
  call.length = length;
  if (auto* group = device_group(membership)) return group->all_reduce_device(call, message, lease.stream());
  refuse_capture(membership, call, lease.stream());
  on_host(lease, message, message, length * sizeof(double),
          [&](void* staging) { membership.group->all_reduce(call, staging); });
}

void all_reduce(const ort::Membership& membership, const Workspace::Lease& lease, Element element,
                const std::string& reduction, const void* X, void* Y, void* wire, size_t length) {
  collective::Call call = membership.call;
  call.length = length;
  if (!membership.shared()) return copy(Y, X, length * size_of(element), lease.stream());
  if (auto* group = device_group(membership)) {
    return on_device(*group, call, lease.stream(), element, reduction, X, Y, wire);
  }
  refuse_capture(membership, call, lease.stream());
  on_host(lease, X, Y, length * size_of(element), [&](void* staging) {
    collective::all_reduce(*membership.group, call, element, reduction, staging, staging, length);
  });
}

}  // namespace bnpass::cuda
