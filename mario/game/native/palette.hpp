// The 64 colours of the PPU as nes-py shows them, and their greys (nesdev "PPU palettes").
#pragma once

#include <array>
#include <cstdint>

#include "types.hpp"

namespace nes {

// 0xRRGGBB; the composite decoding that nes-py and many emulators use.
inline constexpr std::array<std::uint32_t, 64> kPaletteRgb = {
    0x7C7C7C, 0x0000FC, 0x0000BC, 0x4428BC, 0x940084, 0xA80020, 0xA81000, 0x881400,
    0x503000, 0x007800, 0x006800, 0x005800, 0x004058, 0x000000, 0x000000, 0x000000,
    0xBCBCBC, 0x0078F8, 0x0058F8, 0x6844FC, 0xD800CC, 0xE40058, 0xF83800, 0xE45C10,
    0xAC7C00, 0x00B800, 0x00A800, 0x00A844, 0x008888, 0x000000, 0x000000, 0x000000,
    0xF8F8F8, 0x3CBCFC, 0x6888FC, 0x9878F8, 0xF878F8, 0xF85898, 0xF87858, 0xFCA044,
    0xF8B800, 0xB8F818, 0x58D854, 0x58F898, 0x00E8D8, 0x787878, 0x000000, 0x000000,
    0xFCFCFC, 0xA4E4FC, 0xB8B8F8, 0xD8B8F8, 0xF8B8F8, 0xF8A4C0, 0xF0D0B0, 0xFCE0A8,
    0xF8D878, 0xD8F878, 0xB8F8B8, 0xB8F8D8, 0x00FCFC, 0xF8D8F8, 0x000000, 0x000000};

// A drawn pixel is the number of its colour, or its grey level.
using Shades = std::array<Byte, 64>;

constexpr Shades make_identity_shades() {
  Shades shades{};
  for (std::size_t i = 0; i < 64; ++i) shades[i] = static_cast<Byte>(i);
  return shades;
}
inline constexpr Shades kColourShades = make_identity_shades();

// Luma of ITU-R BT.601, rounded; the definition is in mario/game/smb/observations/pixels.py.
constexpr Shades make_grey_shades() {
  Shades shades{};
  for (std::size_t i = 0; i < 64; ++i) {
    const std::uint32_t rgb = kPaletteRgb[i];
    shades[i] = static_cast<Byte>(
        (299 * (rgb >> 16) + 587 * (rgb >> 8 & 0xFF) + 114 * (rgb & 0xFF) + 500) / 1000);
  }
  return shades;
}
inline constexpr Shades kGreyShades = make_grey_shades();

inline constexpr Byte kBlack = 0x0F;

}  // namespace nes
