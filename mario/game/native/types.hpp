// Integer types of the console and the errors it throws; no logic.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace nes {

using Byte = std::uint8_t;
using Address = std::uint16_t;

inline constexpr int kScreenWidth = 256;   // px
inline constexpr int kScreenHeight = 240;  // px
inline constexpr int kScreenPixels = kScreenWidth * kScreenHeight;
inline constexpr int kRamBytes = 0x800;

// Errors that reach Python; module.cpp maps each to its class in mario/errors.py.
struct ConsoleError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct RomError : ConsoleError {
  using ConsoleError::ConsoleError;
};
struct SaveStateError : ConsoleError {
  using ConsoleError::ConsoleError;
};

}  // namespace nes
