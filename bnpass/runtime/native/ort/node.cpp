#include "ort/node.h"

namespace bnpass::ort {

std::string Node::title() const {
  size_t size = 0;
  std::string ignored, name;
  api_.tries<KernelInfo_GetNodeName>(ignored, info_, static_cast<char*>(nullptr), &size);
  if (size > 1) {
    name.resize(size);
    api_.call<KernelInfo_GetNodeName>(info_, name.data(), &size);
    name.resize(size - 1);  // without the NUL
  }
  return std::string(op_type_) + " node '" + name + "'";
}

int64_t Node::integer(const char* name, int64_t otherwise) const {
  int64_t value = otherwise;
  std::string error;
  if (!api_.tries<KernelInfoGetAttribute_int64>(error, info_, name, &value)) check_missing(name, error);
  return value;
}

double Node::real(const char* name, float otherwise) const {
  float value = otherwise;
  std::string error;
  if (!api_.tries<KernelInfoGetAttribute_float>(error, info_, name, &value)) check_missing(name, error);
  return value;
}

std::string Node::text(const char* name, const std::string& otherwise) const {
  size_t size = 0;
  std::string error, value;
  if (!api_.tries<KernelInfoGetAttribute_string>(error, info_, name, static_cast<char*>(nullptr), &size)) {
    check_missing(name, error);
    return otherwise;
  }
  value.resize(size);
  api_.call<KernelInfoGetAttribute_string>(info_, name, value.data(), &size);
  value.resize(size > 0 ? size - 1 : 0);
  return value;
}

bool Node::flag(const char* name, bool otherwise) const {
  const int64_t value = integer(name, otherwise ? 1 : 0);
  if (value != 0 && value != 1) {
    throw Error(title() + ": " + name + " is " + std::to_string(value) + ", neither 0 nor 1");
  }
  return value == 1;
}

void Node::check_missing(const char* name, const std::string& error) const {
  if (error.find("No attribute with name") == std::string::npos) {
    throw Error(title() + ": attribute " + name + ": " + error);
  }
}

Membership membership(const Node& node, const collective::Groups& groups) {
  Membership found;
  found.call.collective_id = node.integer("collective_id", 0);
  found.call.node = node.title();
  const std::string name = node.text("group", "");
  if (name.empty()) return found;
  try {
    found.group = groups.find(name);
  } catch (const Error& error) {
    throw Error(found.call.node + ": " + error.what());
  }
  return found;
}

}  // namespace bnpass::ort
