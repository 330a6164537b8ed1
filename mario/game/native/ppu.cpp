// Timing and registers of the PPU; drawing is in ppu_draw.cpp.
#include "ppu.hpp"

#include <algorithm>
#include <cstring>

namespace nes {
namespace {

constexpr int kDots = PpuState::kDotsPerLine;
constexpr int kVisible = PpuState::kVisibleLines;

// Bits of v and t (nesdev "PPU scrolling"): yyy NN YYYYY XXXXX.
constexpr Address kCoarseX = 0x001F;
constexpr Address kCoarseY = 0x03E0;
constexpr Address kNametableX = 0x0400;
constexpr Address kNametableY = 0x0800;
constexpr Address kFineY = 0x7000;
constexpr Address kHorizontal = kNametableX | kCoarseX;
constexpr Address kVertical = kFineY | kNametableY | kCoarseY;

}  // namespace

Ppu::Ppu(const Cartridge& cartridge, PpuState& state)
    : s_(state),
      chr_(cartridge.chr()),
      nametable_bit_(cartridge.vertical_mirroring() ? kNametableX : kNametableY) {}

void Ppu::run(int dots) {
  while (dots > 0) {
    int n;
    if (s_.line == PpuState::kPreRender) {
      n = run_pre_render(dots);
    } else if (s_.line < kVisible) {
      n = run_visible(dots);
      if (stop_at_hit_ && s_.sprite0_hit) dots = n;
    } else {
      n = run_blanking(dots);
    }
    dots -= n;
    done_ += n;
  }
}

int Ppu::run_pre_render(int dots) {
  // With rendering on, an odd frame leaves the last dot out.
  const int first = s_.dot;
  int last = std::min(first + dots - 1, kDots);
  if (first <= 340 && last >= 340 && !s_.even_frame && rendering()) last = 340;
  const auto covers = [&](int begin, int end) { return first <= end && last >= begin; };

  if (covers(1, 1)) s_.vblank = s_.sprite0_hit = false;
  if (rendering()) {
    if (covers(258, 258)) s_.v = (s_.v & ~kHorizontal) | (s_.t & kHorizontal);
    if (covers(281, 304)) s_.v = (s_.v & ~kVertical) | (s_.t & kVertical);
  }
  const bool ends = last == kDots || (last == 340 && !s_.even_frame && rendering());
  if (ends) {
    s_.line = 0;
    s_.dot = 1;
  } else {
    s_.dot = static_cast<std::int16_t>(last + 1);
  }
  return last - first + 1;
}

int Ppu::run_visible(int dots) {
  const int first = s_.dot;
  if (first == 1 && dots >= kDots) {
    if (const int n = run_whole_lines(dots)) return n;
  }
  int last = std::min(first + dots - 1, kDots);
  if (first <= kScreenWidth) {
    const int x_begin = first - 1;
    int x_end = std::min(last, kScreenWidth);
    if (!s_.sprite0_hit && rendering()) {
      const int x = find_sprite0_hit(x_begin, x_end);
      if (x >= 0) {
        s_.sprite0_hit = true;
        if (stop_at_hit_) {
          x_end = x + 1;
          last = x_end;
        }
      }
    }
    if (screen_) draw(x_begin, x_end, 1);
    // Coarse X moves on after every pixel whose fine X is 7.
    if (s_.show_background)
      advance_coarse_x((s_.fine_x + x_end) / 8 - (s_.fine_x + x_begin) / 8);
  }
  if (first <= 257 && last >= 257 && s_.show_background) increment_y();
  if (first <= 258 && last >= 258 && rendering())
    s_.v = (s_.v & ~kHorizontal) | (s_.t & kHorizontal);
  if (last == kDots)
    end_visible_line();
  else
    s_.dot = static_cast<std::int16_t>(last + 1);
  return last - first + 1;
}

void Ppu::end_visible_line() {
  // nes-py looks for the next line's sprites on the last dot of this one (the hardware: dots 65-256).
  s_.evaluation_pending = true;
  ++s_.line;
  s_.dot = 1;
}

// Whole lines on which sprite 0 cannot hit: as many at once as can be. Not drawn, they only move the
// scroll; drawn, those of one row of tiles go together. Returns the dots done, maybe none.
int Ppu::run_whole_lines(int dots) {
  int lines = lines_without_hit(std::min(dots / kDots, kVisible - s_.line));
  if (lines == 0) return 0;
  if (screen_) {
    // A line begins with t's horizontal bits, unless the program changed v or t since.
    const bool alike = rendering() && ((s_.v ^ s_.t) & kHorizontal) == 0;
    lines = alike ? std::min(lines, 8 - (s_.v >> 12 & 7)) : 1;
    draw(0, kScreenWidth, lines);
  }
  if (s_.show_background) {
    for (int i = 0; i < lines; ++i) {
      if (!rendering()) advance_coarse_x(32);
      increment_y();
    }
    if (rendering()) s_.v = (s_.v & ~kHorizontal) | (s_.t & kHorizontal);
  }
  s_.line = static_cast<std::int16_t>(s_.line + lines);
  s_.evaluation_pending = true;
  return lines * kDots;
}

// How many of the next `lines` lines sprite 0 is certainly not on.
int Ppu::lines_without_hit(int lines) {
  if (!rendering() || s_.sprite0_hit) return lines;
  finish_evaluation();
  if (s_.sprite_count > 0 && s_.sprites[0] == 0) return 0;
  if (s_.oam_address >= 4) return lines;
  // The end of line y finds sprite 0 for the next line when y - its Y is in range.
  const int top = s_.oam[0];
  const int height = s_.tall_sprites ? 16 : 8;
  if (s_.line >= top + height) return lines;
  return std::min(lines, std::max(top - s_.line, 0) + 1);
}

int Ppu::run_blanking(int dots) {
  // Lines 240 to 260 as one stretch; the flag rises on the first dot of line 241.
  constexpr int kFlagDot = kDots;
  constexpr int kEnd = (PpuState::kLastLine - kVisible + 1) * kDots;
  const int begin = (s_.line - kVisible) * kDots + s_.dot - 1;
  const int n = std::min(dots, kEnd - begin);
  const int end = begin + n;
  if (begin <= kFlagDot && kFlagDot < end) {
    s_.vblank = true;
    nmi_ = s_.nmi_enabled;
  }
  if (end == kEnd) {
    s_.line = PpuState::kPreRender;
    s_.dot = 1;
    s_.even_frame = !s_.even_frame;
  } else {
    s_.line = static_cast<std::int16_t>(kVisible + end / kDots);
    s_.dot = static_cast<std::int16_t>(end % kDots + 1);
  }
  return n;
}

int Ppu::dots_to_event() const {
  if (s_.line == PpuState::kPreRender) {
    if (s_.dot <= 340) return 340 - s_.dot + 1;
    return (kDots - s_.dot + 1) + PpuState::kVblankLine * kDots + 1;
  }
  if (s_.line < PpuState::kVblankLine || (s_.line == PpuState::kVblankLine && s_.dot == 1))
    return (PpuState::kVblankLine - s_.line) * kDots - (s_.dot - 1) + 1;
  return (PpuState::kLastLine + 1 - s_.line) * kDots - (s_.dot - 1) + 340;
}

int Ppu::dots_to_hit_clear() const {
  if (s_.line == PpuState::kPreRender) return s_.dot <= 1 ? 2 - s_.dot : 1 << 20;
  if (s_.line < PpuState::kVblankLine || (s_.line == PpuState::kVblankLine && s_.dot == 1))
    return 1 << 20;
  return (PpuState::kLastLine + 1 - s_.line) * kDots - (s_.dot - 1) + 1;
}

void Ppu::run_to_sprite0_hit(int dots) {
  stop_at_hit_ = true;
  catch_up(dots);
  stop_at_hit_ = false;
}

void Ppu::advance_coarse_x(int steps) {
  const int x = (s_.v & kCoarseX) + steps;
  s_.v = (s_.v & ~kCoarseX) | (x & kCoarseX);
  if (x & 0x20) s_.v ^= kNametableX;  // steps <= 32, so it wraps at most once
}

// nesdev "PPU scrolling", "Y increment": row 29 is the last of a nametable; 30 and 31, which a
// program can set, are attribute bytes and wrap without changing it.
void Ppu::increment_y() {
  if ((s_.v & kFineY) != kFineY) {
    s_.v += 0x1000;
    return;
  }
  s_.v &= ~kFineY;
  int y = (s_.v & kCoarseY) >> 5;
  if (y == 29) {
    y = 0;
    s_.v ^= kNametableY;
  } else if (y == 31) {
    y = 0;
  } else {
    ++y;
  }
  s_.v = static_cast<Address>((s_.v & ~kCoarseY) | (y << 5));
}

void Ppu::evaluate_sprites() {
  // The list was due at the end of the line before; line 0 and blanking keep that of line 239.
  const int line = s_.line >= 1 && s_.line < kVisible ? s_.line - 1 : kVisible - 1;
  if (!sprite_table_valid_) build_sprite_table();
  const LineSprites& found = sprite_table_[static_cast<std::size_t>(line)];
  s_.sprite_count = found.count;
  s_.sprites = found.index;
  s_.evaluation_pending = false;
}

// nesdev "PPU sprite evaluation", without the hardware's overflow flag and its fault: the first eight
// sprites in range, in the order of sprite memory, for every line at once.
void Ppu::build_sprite_table() {
  const int height = s_.tall_sprites ? 16 : 8;
  sprite_table_.fill(LineSprites{});
  for (int i = s_.oam_address / 4; i < 64; ++i) {
    const int top = s_.oam[static_cast<std::size_t>(i) * 4];
    for (int line = top; line < std::min(top + height, kVisible); ++line) {
      LineSprites& found = sprite_table_[static_cast<std::size_t>(line)];
      if (found.count < 8) found.index[found.count++] = static_cast<Byte>(i);
    }
  }
  sprite_table_valid_ = true;
}

// nesdev "PPU memory map": pattern tables, nametables, palette.
Byte Ppu::read_bus(Address address) const {
  if (address < 0x2000) return chr_[address];
  // nes-py lets the palette begin one byte early and end one byte early.
  if (address < 0x3EFF) return nametable(address)[address & 0x3FF];
  if (address < 0x3FFF) return s_.palette[address & 0x1F];
  return 0;
}

void Ppu::write_bus(Address address, Byte value) {
  if (address < 0x2000) return;  // CHR-ROM
  if (address < 0x3EFF) {
    s_.vram[(address & nametable_bit_ ? 0x400 : 0) + (address & 0x3FF)] = value;
  } else if (address < 0x3FFF) {
    s_.palette[address == 0x3F10 ? 0 : address & 0x1F] = value;
    if (screen_) update_shades();
  }
}

Byte Ppu::read_status() {
  const Byte status = static_cast<Byte>(s_.sprite0_hit << 6 | s_.vblank << 7);
  s_.vblank = false;
  s_.first_write = true;
  return status;
}

Byte Ppu::read_data() {
  Byte data = read_bus(s_.v);
  s_.v += s_.address_step;
  if (s_.v < 0x3F00) std::swap(data, s_.read_buffer);
  return data;
}

void Ppu::write_data(Byte value) {
  write_bus(s_.v, value);
  s_.v += s_.address_step;
}

void Ppu::write_control(Byte value) {
  const bool tall = value & 0x20;
  if (tall != s_.tall_sprites) before_sprites_change();
  s_.nmi_enabled = value & 0x80;
  s_.tall_sprites = tall;
  s_.background_page = (value >> 4) & 1;
  s_.sprite_page = (value >> 3) & 1;
  s_.address_step = value & 0x04 ? 32 : 1;
  s_.t = static_cast<Address>((s_.t & ~0x0C00) | (value & 3) << 10);
}

void Ppu::write_mask(Byte value) {
  s_.hide_edge_background = !(value & 0x02);
  s_.hide_edge_sprites = !(value & 0x04);
  s_.show_background = value & 0x08;
  s_.show_sprites = value & 0x10;
}

void Ppu::write_oam_address(Byte value) {
  if (value != s_.oam_address) before_sprites_change();
  s_.oam_address = value;
}

void Ppu::write_oam(Byte value) {
  before_sprites_change();
  s_.oam[s_.oam_address++] = value;
}

void Ppu::oam_dma(const Byte* page) {
  before_sprites_change();
  const std::size_t head = 256 - s_.oam_address;
  std::memcpy(s_.oam.data() + s_.oam_address, page, head);
  std::memcpy(s_.oam.data(), page + head, s_.oam_address);
}

void Ppu::write_scroll(Byte value) {
  if (s_.first_write) {
    s_.t = static_cast<Address>((s_.t & ~0x001F) | value >> 3);
    s_.fine_x = value & 7;
  } else {
    s_.t = static_cast<Address>((s_.t & ~0x73E0) | (value & 7) << 12 | (value & 0xF8) << 2);
  }
  s_.first_write = !s_.first_write;
}

void Ppu::write_address(Byte value) {
  if (s_.first_write) {
    s_.t = static_cast<Address>((s_.t & 0x00FF) | (value & 0x3F) << 8);
  } else {
    s_.t = static_cast<Address>((s_.t & 0xFF00) | value);
    s_.v = s_.t;
  }
  s_.first_write = !s_.first_write;
}

}  // namespace nes
