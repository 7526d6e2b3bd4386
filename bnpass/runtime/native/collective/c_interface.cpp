#include "collective/c_interface.h"

#include <string>

#include "collective/all_reduce.h"
#include "collective/handle.h"
#include "collective/mpi_groups.h"
#include "collective/named_groups.h"
#include "collective/threads.h"

namespace bnpass::collective {
namespace {

thread_local std::string last_error;

template <class T>
T& given(T* argument, const char* name) {
  if (argument == nullptr) throw Error(std::string("the argument '") + name + "' is null");
  return *argument;
}

std::vector<SubGroup> sub_groups_of(const bnpass_sub_groups* given_groups) {
  std::vector<SubGroup> sub_groups;
  if (given_groups == nullptr) return sub_groups;
  const int* member = given_groups->members;
  for (size_t i = 0; i < given_groups->count; ++i) {
    const int* end = member + given_groups->member_counts[i];
    sub_groups.push_back({&given(given_groups->names[i], "name"), {member, end}});
    member = end;
  }
  return sub_groups;
}

std::shared_ptr<Group> find(const bnpass_groups* groups, const char* name) {
  return given(groups, "groups").groups->find(&given(name, "name"));
}

Element element_of(int number) {
  const auto element = static_cast<Element>(number);
  if (size_of(element) == 0) throw Error("there is no all-reduce for the ONNX type number " + std::to_string(number));
  return element;
}

Call call_of(int64_t collective_id, const char* node) {
  Call call;
  call.collective_id = collective_id;
  call.node = node == nullptr ? "" : node;
  return call;
}

}  // namespace

int remember_error(Code code, const char* sentence) noexcept {
  try {
    last_error = sentence;
  } catch (...) {
    last_error.clear();
  }
  return static_cast<int>(code);
}

}  // namespace bnpass::collective

using namespace bnpass::collective;

const char* bnpass_last_error() { return last_error.c_str(); }

int bnpass_groups_local(bnpass_groups** groups) {
  return guarded([&] { given(groups, "groups") = new bnpass_groups{local_groups()}; });
}

int bnpass_groups_threads(int size, double deadline, const bnpass_sub_groups* sub_groups, bnpass_groups** groups) {
  return guarded([&] {
    given(groups, "groups");
    const auto replicas = thread_groups(size, Deadline(deadline), sub_groups_of(sub_groups));
    for (size_t rank = 0; rank < replicas.size(); ++rank) groups[rank] = new bnpass_groups{replicas[rank]};
  });
}

int bnpass_groups_mpi(size_t library_count, const char* const* libraries, const uint64_t* communicator, double deadline,
                      const bnpass_sub_groups* sub_groups, bnpass_groups** groups) {
  return guarded([&] {
    given(groups, "groups");
    MpiOptions options;
    options.libraries.assign(libraries, libraries + library_count);
    if (communicator != nullptr) options.communicator = *communicator;
    options.deadline = Deadline(deadline);
    *groups = new bnpass_groups{mpi_groups(options, sub_groups_of(sub_groups))};
  });
}

void bnpass_groups_free(bnpass_groups* groups) { delete groups; }

int bnpass_use_groups(const bnpass_groups* groups) {
  return guarded([&] { use_groups(groups == nullptr ? nullptr : groups->groups); });
}

int bnpass_group_rank(const bnpass_groups* groups, const char* name, int* rank) {
  return guarded([&] { given(rank, "rank") = find(groups, name)->rank(); });
}

int bnpass_group_size(const bnpass_groups* groups, const char* name, int* size) {
  return guarded([&] { given(size, "size") = find(groups, name)->size(); });
}

int bnpass_all_reduce(const bnpass_groups* groups, const char* name, int64_t collective_id, const char* node,
                      int element, const char* reduction, const void* X, void* Y, size_t length) {
  return guarded([&] {
    all_reduce(*find(groups, name), call_of(collective_id, node), element_of(element), &given(reduction, "reduction"),
               X, Y, length);
  });
}

int bnpass_group_fail(const bnpass_groups* groups, const char* name, int64_t collective_id, const char* node,
                      const char* failure) {
  return guarded([&] { find(groups, name)->fail(call_of(collective_id, node), &given(failure, "failure")); });
}

const char* bnpass_mpi_description() {
  static thread_local std::string description;
  if (guarded([] { description = mpi_description(); }) != 0) return "";
  return description.c_str();
}

void bnpass_mpi_end(int broken) {
  guarded([&] { mpi_end(broken != 0); });
}

void bnpass_mpi_abort(int code) {
  guarded([&] { mpi_abort(code); });
}
