#include "collective/named_groups.h"

#include <algorithm>
#include <set>

#include "core/error.h"

namespace bnpass::collective {

std::string fault_of(const std::vector<SubGroup>& sub_groups, int size) {
  std::set<std::string> names{"", kWorld};
  for (const SubGroup& sub_group : sub_groups) {
    const std::string group = "group '" + sub_group.name + "'";
    if (!names.insert(sub_group.name).second) {
      return group + " cannot be made: the names of groups are different, and neither '' nor 'world'";
    }
    if (sub_group.members.empty()) return group + " has no members";
    std::set<int> members;
    for (const int member : sub_group.members) {
      if (member < 0 || member >= size) {
        return group + " has the member " + std::to_string(member) + ", but replicas are numbered 0 to " +
               std::to_string(size - 1);
      }
      if (!members.insert(member).second) return group + " has the member " + std::to_string(member) + " twice";
    }
  }
  return "";
}

int rank_in(const SubGroup& sub_group, int world_rank) {
  const auto found = std::find(sub_group.members.begin(), sub_group.members.end(), world_rank);
  return found == sub_group.members.end() ? -1 : static_cast<int>(found - sub_group.members.begin());
}

NamedGroups::NamedGroups(const std::vector<SubGroup>& sub_groups) {
  groups_[""] = local_groups()->find("");
  for (const SubGroup& sub_group : sub_groups) groups_[sub_group.name] = nullptr;
}

void NamedGroups::add(const std::string& name, std::shared_ptr<Group> group) { groups_[name] = std::move(group); }

std::shared_ptr<Group> NamedGroups::find(const std::string& name) const {
  const auto found = groups_.find(name);
  if (found != groups_.end() && found->second) return found->second;
  std::string names;
  for (const auto& [known, group] : groups_) {
    if (group && !known.empty()) names += (names.empty() ? "'" : ", '") + known + "'";
  }
  const std::string what = found == groups_.end() ? "there is no group '" : "this replica is not in group '";
  throw Error(what + name + "'; its groups are " + names);
}

}  // namespace bnpass::collective
