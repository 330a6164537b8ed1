// Save-states as bytes: version, cartridge, checksum, fields; every field is checked on reading.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "console.hpp"
#include "types.hpp"

namespace nes {

struct SaveState {
  MachineState now;
  MachineState before;
  bool has_before = false;
};

// `before` may be null.
std::vector<Byte> write_save_state(const MachineState& now, const MachineState* before,
                                   std::uint32_t cartridge);

// Throws SaveStateError: no save-state, another version or cartridge, truncated, corrupt.
SaveState read_save_state(const Byte* data, std::size_t size, std::uint32_t cartridge);

}  // namespace nes
