// One rounding from double to a format with fewer bits, in double arithmetic.
//
// x + c − c with c = 1.5·2^(e + 52 − bits), 2^e <= |x| < 2^(e + 1), rounds x to a multiple of 2^(e − bits), to nearest
// even: the formats' own spacing. Below the smallest normal number e stays what it is there. What comes out is exactly
// representable (or too large), so that a conversion by way of float does not round a second time.
#pragma once

namespace bnpass::cpu {

/// bits: of the fraction that is stored. least: the smallest normal number.
struct Format {
  double spread;  ///< 1.5·2^(52 − bits)
  double least;
};

constexpr Format binary16{0x1.8p42, 0x1p-14};
constexpr Format bfloat16{0x1.8p45, 0x1p-126};

/// Beyond this power of two both formats are infinite, and c must not be.
constexpr double far_too_large = 0x1p200;

}  // namespace bnpass::cpu
