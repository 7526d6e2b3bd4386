// The header that replicas agree on before any number is used.
//
// Each replica offers its fields v and their negatives −v. After one MAX-reduction everybody holds max(v) and
// max(−v) = −min(v), so everybody comes to the same judgement: the fields agree if max(v) = min(v). Only when they do
// not, or a replica failed, a second message follows: the table of all replicas' accounts, from which everybody makes
// the same sentence.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "collective/group.h"

namespace bnpass::collective {

enum Field : size_t { kVersion, kCollectiveId, kLength, kWire, kReduction, kPurpose, kFailure, kFields };

/// Why a replica takes part in a call.
enum class Purpose : int64_t {
  payload = 0,    ///< To reduce a payload, right after the header.
  agreement = 1,  ///< To agree on the header alone; the payload goes another way.
  failure = 2     ///< To tell the others that it cannot.
};

/// v of every field, then −v of every field.
using Header = std::array<int64_t, 2 * kFields>;

/// Returns what this replica offers.
Header header_of(const Call& call, Purpose purpose);

/// Takes the MAX of two headers, word by word, into the first.
void reduce(Header& into, const Header& other);

/// Returns whether all replicas agree, none failed, and they can go on. reduced: the MAX over all replicas.
bool agrees(const Header& reduced);

constexpr size_t kTextBytes = 512;
constexpr size_t kAccountWords = kFields + kTextBytes / sizeof(int64_t);

/// What one replica says about a call, in words of fixed number: its fields, then a text that ends at the first NUL.
using Account = std::array<int64_t, kAccountWords>;

/// Returns the account of this replica. failure: what it found, if that is the purpose.
Account account_of(const Call& call, Purpose purpose, const std::string& failure);

/// Returns the word that loses against every other in a MAX-reduction; rows of other replicas are filled with it.
constexpr int64_t absent() { return INT64_MIN; }

/// Returns the sentence for replicas that cannot go on, the same on each of them. accounts: one per replica, in rank
/// order.
std::string sentence_of(const std::vector<Account>& accounts);

/// Returns "collective 3 of SyncBatchNormalization node 'bn1'".
std::string name_of(const Call& call);

/// Returns "129 elements of double".
std::string message_of(int64_t length, int64_t wire);

/// Returns the bytes of one element on the wire.
size_t size_of(Wire wire);

/// Returns "60 s", "0.5 s".
std::string seconds_text(double seconds);

}  // namespace bnpass::collective
