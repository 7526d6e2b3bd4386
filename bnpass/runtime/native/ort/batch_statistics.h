// Statistics of a batch over all replicas of a group.
#pragma once

#include <exception>
#include <utility>

#include "core/element.h"
#include "core/geometry.h"
#include "core/parallel.h"
#include "ort/node.h"
#include "ort/vectors.h"

namespace bnpass::ort {

/// mean and var (population), [groups, channels], of count elements each; all 0 if count is 0.
struct BatchStatistics {
  Vector mean;
  Vector var;
  double count;
};

/// Takes the statistics of X over this replica or, if the node has one, its group.
///
/// One message [n, n·mean, Σ(x − mean)² + n·mean²] for types up to float, where the sum of squares keeps 1e-16·(mean/std)²
/// of the variance; for double X two, so that nothing is lost: first [n, n·mean], then the squares around the common mean.
BatchStatistics batch_statistics(Parallel& parallel, const Geometry& geometry, Element element, const void* X,
                                 const Membership& membership);

/// Runs what can fail on this replica alone before it speaks to the others, and tells them if it does.
template <class Body>
auto locally(const Membership& membership, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const std::exception& error) {
    if (membership.shared()) membership.group->fail(membership.call, error.what());
    throw;
  }
}

/// Sums a message of doubles over the group, in place.
void exchange(const Membership& membership, Vector& message);

}  // namespace bnpass::ort
