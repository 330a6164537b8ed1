// Reads an iNES file (nesdev "INES") and refuses what this console cannot run.
#include "cartridge.hpp"

#include <cstring>
#include <string>
#include <vector>

#include "checksum.hpp"

namespace nes {
namespace {

constexpr std::size_t kHeaderBytes = 16;
constexpr std::size_t kPrgBank = 0x4000;

[[noreturn]] void refuse(const std::string& got, const std::string& expected) {
  throw RomError("cartridge image: " + got + "; expected " + expected +
                 "; use the super-mario-bros.nes of gym-super-mario-bros 7.4.0");
}

}  // namespace

std::shared_ptr<const Cartridge> Cartridge::load(const Byte* image, std::size_t size) {
  if (size < kHeaderBytes || std::memcmp(image, "NES\x1A", 4) != 0)
    refuse(std::to_string(size) + " bytes without an iNES header", "\"NES\" and 0x1A at the start");
  const std::size_t prg_bytes = image[4] * kPrgBank;
  const std::size_t chr_bytes = image[5] * kChrBytes;
  const Byte flags6 = image[6], flags7 = image[7], flags9 = image[9];
  const int mapper = (flags6 >> 4) | (flags7 & 0xF0);
  if (mapper != 0) refuse("mapper " + std::to_string(mapper), "mapper 0 (NROM)");
  if (flags6 & 0x04) refuse("a trainer", "none");
  if (flags6 & 0x02) refuse("battery-backed PRG-RAM", "none");
  if (flags6 & 0x08) refuse("four-screen VRAM", "horizontal or vertical mirroring");
  if (flags9 & 0x01) refuse("the PAL television system", "NTSC");
  if (prg_bytes != kPrgBank && prg_bytes != kPrgBytes)
    refuse(std::to_string(prg_bytes) + " bytes of PRG-ROM", "16 or 32 KiB");
  if (chr_bytes != kChrBytes) refuse(std::to_string(chr_bytes) + " bytes of CHR-ROM", "8 KiB");
  if (size < kHeaderBytes + prg_bytes + chr_bytes)
    refuse("truncated at " + std::to_string(size) + " bytes",
           std::to_string(kHeaderBytes + prg_bytes + chr_bytes) + " by its header");

  auto cartridge = std::make_shared<Cartridge>();
  const Byte* prg = image + kHeaderBytes;
  for (std::size_t at = 0; at < kPrgBytes; at += prg_bytes)
    std::memcpy(cartridge->prg_.data() + at, prg, prg_bytes);
  std::memcpy(cartridge->chr_.data(), prg + prg_bytes, chr_bytes);
  cartridge->vertical_mirroring_ = flags6 & 0x01;

  std::vector<Byte> all(cartridge->prg_.begin(), cartridge->prg_.begin() + kPrgBytes);
  all.insert(all.end(), cartridge->chr_.begin(), cartridge->chr_.end());
  all.push_back(flags6 & 0x01);
  cartridge->identity_ = crc32(all.data(), all.size());
  return cartridge;
}

}  // namespace nes
