// The groups of one replica, by name; "" is this replica alone.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "collective/group.h"

namespace bnpass::collective {

/// The name of the group of all replicas.
constexpr const char* kWorld = "world";

/// A named part of the world. The replica members[i] has the rank i in it.
struct SubGroup {
  std::string name;
  std::vector<int> members;
};

/// Returns what is wrong with sub-groups of a world of `size` replicas, or "".
std::string fault_of(const std::vector<SubGroup>& sub_groups, int size);

/// Returns the rank of a replica of the world in a sub-group, or -1 if it is not in it.
int rank_in(const SubGroup& sub_group, int world_rank);

class NamedGroups final : public Groups {
 public:
  explicit NamedGroups(const std::vector<SubGroup>& sub_groups);

  void add(const std::string& name, std::shared_ptr<Group> group);
  std::shared_ptr<Group> find(const std::string& name) const override;

 private:
  std::map<std::string, std::shared_ptr<Group>> groups_;  // null: the name exists, without this replica
};

}  // namespace bnpass::collective
