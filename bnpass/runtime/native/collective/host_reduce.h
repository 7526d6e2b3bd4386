// The reduction of two messages in host memory.
#pragma once

#include "collective/group.h"

namespace bnpass::collective {

/// Computes into = into ∘ other, element by element, in this order. int64 sums wrap around.
void host_reduce(const Call& call, void* into, const void* other);

/// Copies a message; every NaN gets the same bits: which of two NaNs a sum keeps depends on the order of its terms.
void copy_canonical(const Call& call, const void* from, void* to);

}  // namespace bnpass::collective
