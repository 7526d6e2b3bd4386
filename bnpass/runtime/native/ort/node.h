// A node of a model, as its kernel is made: its name and attributes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "collective/group.h"
#include "ort/api.h"

namespace bnpass::ort {

class Node {
 public:
  Node(const Api& api, const KernelInfo* info, const char* op_type) : api_(api), info_(info), op_type_(op_type) {}

  /// "SyncBatchNormalization node 'bn1'".
  std::string title() const;
  /// An attribute; the default where the node does not write it. Throws Error if it has another type.
  int64_t integer(const char* name, int64_t otherwise) const;
  double real(const char* name, float otherwise) const;
  std::string text(const char* name, const std::string& otherwise) const;
  /// As integer; throws Error if it is not 0 or 1.
  bool flag(const char* name, bool otherwise) const;

  const Api& api() const { return api_; }
  const KernelInfo* info() const { return info_; }

 private:
  void check_missing(const char* name, const std::string& error) const;

  Api api_;
  const KernelInfo* info_;
  const char* op_type_;
};

/// The attributes that every operator has which may speak to other replicas.
struct Membership {
  std::shared_ptr<collective::Group> group;  ///< Null for this replica alone.
  collective::Call call;                     ///< With the id and the node; without type and length.

  /// Whether there is anyone to speak to.
  bool shared() const { return group != nullptr && group->size() > 1; }
};

/// Reads group and collective_id. Throws Error if the session does not know the group.
Membership membership(const Node& node, const collective::Groups& groups);

}  // namespace bnpass::ort
