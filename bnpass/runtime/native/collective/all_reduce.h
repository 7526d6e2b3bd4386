// The AllReduce operator on host memory: Y = the sum, mean, maximum or minimum of X over the replicas of a group.
//
// float, double and int64 are summed as they are; float16 and bfloat16 as float, rounded once. The mean is the sum
// divided by the number of replicas. Maxima and minima of floats travel as integers of the same order (ordered_key.h):
// the result is NaN if any value is, and −0 < +0.
#pragma once

#include <cstddef>
#include <string>

#include "collective/group.h"
#include "core/element.h"

namespace bnpass::collective {

/// Writes Y, [length]; X may be Y. Of the call, id and node are read; wire, reduction and length follow from the rest.
/// reduction: "sum", "mean", "max", "min". Throws Error as Group::all_reduce does, on all replicas, also if there is no
/// such reduction or no mean of int64.
void all_reduce(Group& group, Call call, Element element, const std::string& reduction, const void* X, void* Y,
                size_t length);

}  // namespace bnpass::collective
