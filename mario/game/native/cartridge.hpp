// The cartridge: an iNES file with the NROM board (mapper 0), nesdev "INES" and "NROM".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "types.hpp"

namespace nes {

// It is constant after loading, so that any number of consoles and threads can share one.
class Cartridge {
 public:
  // PRG is followed by a few zero bytes so that an instruction's three bytes can be read at once
  // at the end of the address space.
  static constexpr std::size_t kPrgBytes = 0x8000;
  static constexpr std::size_t kPrgPadding = 4;
  static constexpr std::size_t kChrBytes = 0x2000;

  // Parses an iNES image. Throws RomError when it is no such image, is truncated, or needs hardware
  // that is not emulated (another mapper, a trainer, PAL, PRG-RAM, CHR-RAM, four-screen VRAM).
  static std::shared_ptr<const Cartridge> load(const Byte* image, std::size_t size);

  // Program memory as the CPU sees it from $8000; a 16 KiB bank appears twice.
  const Byte* prg() const { return prg_.data(); }
  // Pattern tables as the PPU sees them from $0000.
  const Byte* chr() const { return chr_.data(); }
  // Nametable mirroring: true for vertical (the arrangement of a game that scrolls sideways).
  bool vertical_mirroring() const { return vertical_mirroring_; }
  // CRC-32 over PRG, CHR and mirroring: identifies the cartridge of a save-state.
  std::uint32_t identity() const { return identity_; }

 private:
  std::array<Byte, kPrgBytes + kPrgPadding> prg_{};
  std::array<Byte, kChrBytes> chr_{};
  bool vertical_mirroring_ = false;
  std::uint32_t identity_ = 0;
};

}  // namespace nes
