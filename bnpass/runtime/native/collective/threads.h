// Replicas that are threads of one process.
#pragma once

#include <memory>
#include <vector>

#include "collective/host_group.h"
#include "collective/named_groups.h"

namespace bnpass::collective {

/// Returns the groups of `size` replicas, in rank order: "world" and the sub-groups.
/// Throws Error if the size, the deadline or a sub-group cannot be.
std::vector<std::shared_ptr<Groups>> thread_groups(int size, Deadline deadline,
                                                   const std::vector<SubGroup>& sub_groups);

}  // namespace bnpass::collective
