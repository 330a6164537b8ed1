// Pixels of the PPU: background tiles eight at a time, sprites on top, and the sprite-0 hit
// (nesdev "PPU pattern tables", "PPU nametables", "PPU attribute tables", "PPU OAM").
#include <algorithm>
#include <array>
#include <cstring>

#include "ppu.hpp"

namespace nes {
namespace {

// For each bit plane byte, eight bytes of 0x00 or 0xFF, leftmost pixel (bit 7) first in memory.
struct PlaneMasks {
  std::uint64_t words[256];
  PlaneMasks() {
    for (int plane = 0; plane < 256; ++plane) {
      Byte bytes[8];
      for (int x = 0; x < 8; ++x) bytes[x] = plane >> (7 - x) & 1 ? 0xFF : 0x00;
      std::memcpy(&words[plane], bytes, 8);
    }
  }
};
const PlaneMasks kPlaneMasks;

constexpr std::uint64_t broadcast(Byte value) { return value * 0x0101010101010101ull; }

constexpr Byte reverse_bits(Byte b) {
  b = static_cast<Byte>((b & 0xF0) >> 4 | (b & 0x0F) << 4);
  b = static_cast<Byte>((b & 0xCC) >> 2 | (b & 0x33) << 2);
  return static_cast<Byte>((b & 0xAA) >> 1 | (b & 0x55) << 1);
}

}  // namespace

void Ppu::set_screen(Byte* screen, const std::array<Byte, 64>& shade) {
  screen_ = screen;
  shade_ = shade;
  if (screen_) update_shades();
}

void Ppu::update_shades() {
  for (std::size_t i = 0; i < 32; ++i) palette_shade_[i] = shade_[s_.palette[i] & 0x3F];
  for (std::size_t p = 0; p < 4; ++p) {
    // Colour 0 of every palette shows the backdrop, which is entry 0.
    const Byte c0 = palette_shade_[0], c1 = palette_shade_[p * 4 + 1],
               c2 = palette_shade_[p * 4 + 2], c3 = palette_shade_[p * 4 + 3];
    words_[p] = {broadcast(c0), broadcast(c0 ^ c1), broadcast(c0 ^ c2),
                 broadcast(c0 ^ c1 ^ c2 ^ c3)};
  }
}

Ppu::PatternRow Ppu::background_row(Address v) const {
  const Byte tile = nametable(v)[v & 0x3FF];
  const Byte* pattern = chr_ + (s_.background_page << 12 | tile << 4 | (v >> 12 & 7));
  return {pattern[0], pattern[8]};
}

Ppu::PatternRow Ppu::sprite_row(int index) const {
  const Byte* sprite = &s_.oam[static_cast<std::size_t>(index) * 4];
  const Byte top = static_cast<Byte>(sprite[0] + 1), tile = sprite[1], attributes = sprite[2];
  const int height = s_.tall_sprites ? 16 : 8;
  // Negative where the sprite moved after it was found; nes-py then reads before its pattern.
  int row = (s_.line - top) % height;
  if (attributes & 0x80) row ^= height - 1;
  int address;
  if (s_.tall_sprites) {
    row = (row & 7) | (row & 8) << 1;
    address = ((tile >> 1) * 32 + row) | (tile & 1) << 12;
  } else {
    address = tile * 16 + row + (s_.sprite_page << 12);
  }
  PatternRow pattern{read_bus(static_cast<Address>(address)),
                     read_bus(static_cast<Address>(static_cast<Address>(address) + 8))};
  if (attributes & 0x40) pattern = {reverse_bits(pattern.low), reverse_bits(pattern.high)};
  return pattern;
}

// Returns the x of the first pixel in [x_begin, x_end) where sprite 0 and the background are both
// opaque, or -1. (The hardware makes an exception of x = 255; nes-py does not.)
int Ppu::find_sprite0_hit(int x_begin, int x_end) {
  finish_evaluation();
  if (s_.sprite_count == 0 || s_.sprites[0] != 0) return -1;
  const int left = s_.oam[3];
  int begin = std::max(x_begin, left);
  const int end = std::min(x_end, left + 8);
  if (s_.hide_edge_background || s_.hide_edge_sprites) begin = std::max(begin, 8);
  if (begin >= end) return -1;
  const PatternRow sprite = sprite_row(0);
  const Byte sprite_opaque = sprite.low | sprite.high;
  if (sprite_opaque == 0) return -1;
  for (int x = begin; x < end; ++x) {
    if (!(sprite_opaque >> (7 - (x - left)) & 1)) continue;
    const int steps = (s_.fine_x + x) / 8 - (s_.fine_x + x_begin) / 8;
    const int coarse = (s_.v & 0x1F) + steps;
    const Address v =
        static_cast<Address>(((s_.v & ~0x1F) | (coarse & 0x1F)) ^ (coarse & 0x20 ? 0x400 : 0));
    const PatternRow row = background_row(v);
    if ((row.low | row.high) >> (7 - (s_.fine_x + x) % 8) & 1) return x;
  }
  return -1;
}

// Draws pixels x_begin to x_end of `lines` lines that lie in one row of tiles and differ in nothing
// but fine Y (so names and attributes are looked up once for all of them).
void Ppu::draw(int x_begin, int x_end, int lines) {
  alignas(16) Rows rows;
  const int offset = (s_.fine_x + x_begin) & 7;
  const int tiles_x = x_begin - offset;  // x of the first tile's left edge
  const int tiles = (offset + x_end - x_begin + 7) / 8;
  const auto width = static_cast<std::size_t>(x_end - x_begin);
  if (s_.show_background) draw_background(rows, tiles_x, tiles, lines);

  const std::int16_t first_line = s_.line;
  for (int i = 0; i < lines; ++i) {
    Byte* const row = rows.pixels[i] + kMargin;  // row[x] is pixel x
    Byte* const opaque = rows.opaque[i];
    if (!s_.show_background) {
      std::memset(row + x_begin, palette_shade_[0], width);
      std::memset(opaque, 0, sizeof rows.opaque[i]);
    } else if (s_.hide_edge_background && x_begin < 8) {
      std::memset(row + x_begin, palette_shade_[0], static_cast<std::size_t>(8 - x_begin));
      for (int x = x_begin; x < std::min(8, x_end); ++x) {
        const int bit = x - tiles_x;
        opaque[bit >> 3] &= static_cast<Byte>(~(0x80 >> (bit & 7)));
      }
    }
    if (i > 0) {  // the end of the line before
      s_.line = static_cast<std::int16_t>(first_line + i);
      s_.evaluation_pending = true;
    }
    if (s_.show_sprites) {
      finish_evaluation();
      if (s_.sprite_count > 0) draw_sprites(row, opaque, tiles_x, x_begin, x_end);
    }
    std::memcpy(screen_ + s_.line * kScreenWidth + x_begin, row + x_begin, width);
  }
  s_.line = first_line;
}

void Ppu::draw_background(Rows& rows, int tiles_x, int tiles, int lines) {
  const int fine_y = s_.v >> 12 & 7;
  const int coarse_y = s_.v >> 5 & 0x1F;
  const Byte* const chr = chr_ + (s_.background_page << 12);
  const int attribute_shift = (coarse_y & 2) << 1;
  Address nametable_of = s_.v;
  int coarse_x = s_.v & 0x1F;
  const Byte* names = nametable(nametable_of) + coarse_y * 32;
  const Byte* attributes = nametable(nametable_of) + 0x3C0 + (coarse_y >> 2) * 8;
  for (int tile = 0; tile < tiles; ++tile) {
    const int palette = attributes[coarse_x >> 2] >> (attribute_shift | (coarse_x & 2)) & 3;
    const PaletteWords w = words_[static_cast<std::size_t>(palette)];
    const Byte* const pattern = chr + names[coarse_x] * 16;
    Byte* const out = rows.pixels[0] + kMargin + tiles_x + tile * 8;
    Byte* const opaque = rows.opaque[0] + tile;
    std::uint64_t planes[2];
    std::memcpy(planes, pattern, sizeof planes);
    if ((planes[0] | planes[1]) == 0) {  // sky
      for (int i = 0; i < lines; ++i) {
        std::memcpy(out + i * kRowBytes, &w.base, 8);
        opaque[i * kRowTiles] = 0;
      }
    } else {
      for (int i = 0; i < lines; ++i) {
        const Byte low = pattern[fine_y + i], high = pattern[fine_y + i + 8];
        const std::uint64_t l = kPlaneMasks.words[low], h = kPlaneMasks.words[high];
        const std::uint64_t pixels = w.base ^ (l & w.low) ^ (h & w.high) ^ (l & h & w.both);
        std::memcpy(out + i * kRowBytes, &pixels, 8);
        opaque[i * kRowTiles] = low | high;
      }
    }
    if (++coarse_x == 32) {
      coarse_x = 0;
      nametable_of ^= 0x400;
      names = nametable(nametable_of) + coarse_y * 32;
      attributes = nametable(nametable_of) + 0x3C0 + (coarse_y >> 2) * 8;
    }
  }
}

// The first sprite in the list that is opaque at a pixel has it, even where it is behind the
// background (nesdev "PPU sprite priority").
void Ppu::draw_sprites(Byte* row, const Byte* opaque, int opaque_x, int x_begin, int x_end) {
  Byte taken[kScreenWidth + kMargin] = {};
  if (s_.hide_edge_sprites) x_begin = std::max(x_begin, 8);
  for (int n = 0; n < s_.sprite_count; ++n) {
    const int index = s_.sprites[static_cast<std::size_t>(n)];
    const Byte attributes = s_.oam[static_cast<std::size_t>(index) * 4 + 2];
    const int left = s_.oam[static_cast<std::size_t>(index) * 4 + 3];
    const PatternRow pattern = sprite_row(index);
    const Byte* const shades = &palette_shade_[static_cast<std::size_t>(0x10 | (attributes & 3) << 2)];
    const int begin = std::max(left, x_begin), end = std::min(left + 8, x_end);
    for (int x = begin; x < end; ++x) {
      const int bit = 7 - (x - left);
      const int colour = (pattern.low >> bit & 1) | (pattern.high >> bit & 1) << 1;
      if (colour == 0 || taken[x]) continue;
      taken[x] = 1;
      const int at = x - opaque_x;
      const bool behind = attributes & 0x20;
      if (!behind || !(opaque[at >> 3] >> (7 - (at & 7)) & 1)) row[x] = shades[colour];
    }
  }
}

}  // namespace nes
