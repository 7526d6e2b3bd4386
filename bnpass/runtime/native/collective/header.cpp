#include "collective/header.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace bnpass::collective {
namespace {

// Replicas with libraries that speak differently must not read each other's words.
constexpr int64_t kProtocol = 1;

std::array<int64_t, kFields> fields_of(const Call& call, Purpose purpose) {
  std::array<int64_t, kFields> fields{};
  fields[kVersion] = kProtocol;
  fields[kCollectiveId] = call.collective_id;
  fields[kLength] = static_cast<int64_t>(call.length);
  fields[kWire] = static_cast<int64_t>(call.wire);
  fields[kReduction] = static_cast<int64_t>(call.reduction);
  fields[kPurpose] = static_cast<int64_t>(purpose);
  fields[kFailure] = purpose == Purpose::failure ? 1 : 0;
  return fields;
}

// −INT64_MIN does not exist; ids are not expected there, but a wrong one must be judged as any other.
int64_t negative(int64_t value) { return value == INT64_MIN ? INT64_MAX : -value; }

const char* wire_name(int64_t wire) {
  switch (static_cast<Wire>(wire)) {
    case Wire::f32:
      return "float";
    case Wire::i64:
      return "int64";
    case Wire::f64:
      return "double";
  }
  return "an unknown type";
}

const char* reduction_name(int64_t reduction) {
  switch (static_cast<Reduction>(reduction)) {
    case Reduction::sum:
      return "sum";
    case Reduction::max:
      return "maximum";
    case Reduction::min:
      return "minimum";
  }
  return "unknown reduction";
}

/// Cuts a text to at most `limit` bytes, never inside a character of UTF-8.
std::string cut(const std::string& text, size_t limit) {
  if (text.size() <= limit) return text;
  size_t end = limit;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end);
}

std::string text_of(const Account& account) {
  const char* begin = reinterpret_cast<const char*>(account.data() + kFields);
  return std::string(begin, strnlen(begin, kTextBytes));
}

std::string at_node(const Account& account) {
  const std::string node = text_of(account);
  return node.empty() ? "" : " (" + node + ")";
}

std::string replica(size_t rank) { return "replica " + std::to_string(rank); }

std::string failure_of(const std::vector<Account>& accounts, size_t rank) {
  std::string text = text_of(accounts[rank]);
  if (text.empty()) text = "it gave no reason";
  return replica(rank) + " failed: " + text;
}

std::string disagreement_of(const std::vector<Account>& accounts, size_t rank) {
  const Account& first = accounts[0];
  const Account& other = accounts[rank];
  const std::string at_first = at_node(first);
  const std::string at_other = at_node(other);
  if (first[kVersion] != other[kVersion]) {
    return "replicas run versions of bnpass that do not work together: replica 0 and " + replica(rank);
  }
  if (first[kCollectiveId] != other[kCollectiveId]) {
    return "replicas disagree about the order of collectives: replica 0 is at collective " +
           std::to_string(first[kCollectiveId]) + at_first + ", " + replica(rank) + " at collective " +
           std::to_string(other[kCollectiveId]) + at_other;
  }
  const std::string about =
      "replicas disagree about collective " + std::to_string(first[kCollectiveId]) + ": replica 0";
  if (first[kReduction] != other[kReduction]) {
    return about + " asks for the " + reduction_name(first[kReduction]) + at_first + ", " + replica(rank) +
           " for the " + reduction_name(other[kReduction]) + at_other;
  }
  if (first[kPurpose] != other[kPurpose]) {
    return about + " and " + replica(rank) + " move the payload in different ways";
  }
  return about + " sends " + message_of(first[kLength], first[kWire]) + at_first + ", " + replica(rank) + " sends " +
         message_of(other[kLength], other[kWire]) + at_other;
}

}  // namespace

Header header_of(const Call& call, Purpose purpose) {
  const auto fields = fields_of(call, purpose);
  Header header{};
  for (size_t i = 0; i < kFields; ++i) {
    header[i] = fields[i];
    header[kFields + i] = negative(fields[i]);
  }
  return header;
}

void reduce(Header& into, const Header& other) {
  for (size_t i = 0; i < into.size(); ++i) into[i] = std::max(into[i], other[i]);
}

bool agrees(const Header& reduced) {
  if (reduced[kFailure] != 0) return false;
  for (size_t i = 0; i < kFields; ++i) {
    if (negative(reduced[i]) != reduced[kFields + i]) return false;
  }
  return true;
}

Account account_of(const Call& call, Purpose purpose, const std::string& failure) {
  const auto fields = fields_of(call, purpose);
  Account account{};
  std::copy(fields.begin(), fields.end(), account.begin());
  const std::string text = cut(purpose == Purpose::failure ? failure : call.node, kTextBytes - 1);
  std::memcpy(account.data() + kFields, text.data(), text.size());
  return account;
}

std::string sentence_of(const std::vector<Account>& accounts) {
  for (size_t rank = 0; rank < accounts.size(); ++rank) {
    if (accounts[rank][kFailure] != 0) return failure_of(accounts, rank);
  }
  for (size_t rank = 1; rank < accounts.size(); ++rank) {
    if (!std::equal(accounts[0].begin(), accounts[0].begin() + kFields, accounts[rank].begin())) {
      return disagreement_of(accounts, rank);
    }
  }
  return "replicas disagree, but their accounts do not";
}

std::string name_of(const Call& call) {
  const std::string name = "collective " + std::to_string(call.collective_id);
  return call.node.empty() ? name : name + " of " + call.node;
}

std::string message_of(int64_t length, int64_t wire) {
  return std::to_string(length) + (length == 1 ? " element of " : " elements of ") + wire_name(wire);
}

size_t size_of(Wire wire) { return wire == Wire::f32 ? 4 : 8; }

std::string seconds_text(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%g s", seconds);
  return text;
}

}  // namespace bnpass::collective
