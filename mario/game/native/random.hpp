// SplitMix64, the generator of an episode (Steele, Lea & Flood 2014); same as mario/game/rng.py.
#pragma once

#include <cstdint>

namespace nes {

class SplitMix64 {
 public:
  explicit SplitMix64(std::uint64_t seed = 0) : state_(seed) {}

  std::uint64_t next() {
    state_ += 0x9E3779B97F4A7C15ull;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  // An integer in 0 ... bound - 1, for bound up to 2**32.
  std::uint64_t below(std::uint64_t bound) { return (next() >> 32) * bound >> 32; }
  // A number in [0, 1) in steps of 2**-53.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

  std::uint64_t state() const { return state_; }

 private:
  std::uint64_t state_;
};

}  // namespace nes
