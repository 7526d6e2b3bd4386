// Where the elements of a channel and ghost batch lie in a tensor with one channel axis.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace bnpass {

/// X in C order, seen as [samples, groups, per, channels, inner]:
///
///   outer index o = (sample · groups + group) · per + p,     element (o, c, i) at (o · channels + c) · inner + i
///
/// Statistics are [groups, channels]; ghost batch g holds the rows o with (o / per) % groups == g.
struct Geometry {
  size_t samples = 1;   ///< Samples of one ghost batch.
  size_t groups = 1;    ///< Ghost batches; 1 without them.
  size_t per = 1;       ///< Product of the lengths between the batch and the channel axis.
  size_t channels = 1;  ///< C.
  size_t inner = 1;     ///< Product of the lengths behind the channel axis; 1 for channels last.

  size_t outer() const { return samples * groups * per; }
  size_t size() const { return outer() * channels * inner; }
  size_t statistics() const { return groups * channels; }
  /// Elements per channel and ghost batch; 0 if there is no ghost batch at all.
  size_t count() const { return groups == 0 ? 0 : samples * per * inner; }
  size_t group_of(size_t o) const { return (o / per) % groups; }
};

/// Returns the geometry of a tensor.
/// Throws Error if the rank is 0, the axis is out of range, or the ghost batches do not divide the batch.
Geometry geometry(const std::vector<int64_t>& dims, int64_t axis, int64_t virtual_batch_size);

}  // namespace bnpass
