// What a bnpass_groups of the C interface points to.
#pragma once

#include <memory>

#include "collective/group.h"

struct bnpass_groups {
  std::shared_ptr<bnpass::collective::Groups> groups;
};
