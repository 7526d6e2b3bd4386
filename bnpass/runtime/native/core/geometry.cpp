#include "core/geometry.h"

#include <string>

#include "core/error.h"

namespace bnpass {
namespace {

size_t product(const std::vector<int64_t>& dims, size_t from, size_t to) {
  size_t result = 1;
  for (size_t i = from; i < to; ++i) result *= static_cast<size_t>(dims[i]);
  return result;
}

}  // namespace

Geometry geometry(const std::vector<int64_t>& dims, int64_t axis, int64_t virtual_batch_size) {
  const auto rank = static_cast<int64_t>(dims.size());
  if (rank == 0) throw Error("X is a scalar: it has no channel axis");
  if (axis < -rank || axis >= rank) {
    throw Error("axis " + std::to_string(axis) + " is not an axis of X, which has rank " + std::to_string(rank));
  }
  const auto channel_axis = static_cast<size_t>(axis < 0 ? axis + rank : axis);
  Geometry found;
  found.channels = static_cast<size_t>(dims[channel_axis]);
  found.inner = product(dims, channel_axis + 1, dims.size());
  if (channel_axis > 0) {
    found.samples = static_cast<size_t>(dims[0]);
    found.per = product(dims, 1, channel_axis);
  }
  if (virtual_batch_size == 0) return found;
  const int64_t batch = channel_axis > 0 ? dims[0] : 1;
  if (virtual_batch_size < 0) {
    throw Error("virtual_batch_size is " + std::to_string(virtual_batch_size) + ", less than 0");
  }
  if (channel_axis == 0) throw Error("ghost batches split axis 0, which is the channel axis");
  if (batch % virtual_batch_size != 0) {
    throw Error("virtual_batch_size " + std::to_string(virtual_batch_size) + " does not divide a batch of " +
                std::to_string(batch));
  }
  found.groups = static_cast<size_t>(batch / virtual_batch_size);
  found.samples = static_cast<size_t>(virtual_batch_size);
  return found;
}

}  // namespace bnpass
