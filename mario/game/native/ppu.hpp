// The picture processing unit (nesdev "PPU registers", "PPU rendering", "PPU scrolling").
//
// It runs behind the CPU and catches up when the CPU touches a register or an event is due, a
// scanline (or the part of one) at a time instead of dot by dot. What a program can observe is
// nes-py's: the same dot for every flag, scroll update, sprite evaluation and pixel. Where nes-py
// differs from the hardware, the code follows nes-py and a comment says so.
#pragma once

#include <array>
#include <cstdint>

#include "cartridge.hpp"
#include "types.hpp"

namespace nes {

// The part of the PPU that a save-state holds.
struct PpuState {
  static constexpr int kPreRender = -1;    // scanline that ends vertical blanking
  static constexpr int kVisibleLines = 240;
  static constexpr int kVblankLine = 241;  // the flag is set on dot 1 of it
  static constexpr int kLastLine = 260;
  static constexpr int kDotsPerLine = 341;

  // The next dot to do: dots count from 1 to 341 (only the very first line has a dot 0).
  std::int16_t line = kPreRender;
  std::int16_t dot = 0;
  bool even_frame = true;

  // PPUSTATUS
  bool vblank = false;
  bool sprite0_hit = false;

  // PPUCTRL
  bool nmi_enabled = false;
  bool tall_sprites = false;  // 8×16
  Byte background_page = 0;   // pattern table 0 or 1
  Byte sprite_page = 0;
  Byte address_step = 1;      // 1 or 32

  // PPUMASK
  bool show_background = true;
  bool show_sprites = true;
  bool hide_edge_background = false;
  bool hide_edge_sprites = false;

  // Loopy's registers (nesdev "PPU scrolling"): v, t, x, w. nes-py lets v run up to 16 bits.
  Address v = 0;
  Address t = 0;
  Byte fine_x = 0;
  bool first_write = true;
  Byte read_buffer = 0;

  Byte oam_address = 0;
  // Up to eight sprites of the present line, found at the end of the line before. The search is
  // deferred until its result is needed; `evaluation_pending` marks that.
  bool evaluation_pending = false;
  Byte sprite_count = 0;
  std::array<Byte, 8> sprites{};

  std::array<Byte, 256> oam{};
  std::array<Byte, 32> palette{};
  std::array<Byte, 2048> vram{};
};

class Ppu {
 public:
  Ppu(const Cartridge& cartridge, PpuState& state);

  // Draw into `screen` (256 × 240 bytes, row by row) from now on, or draw nothing when null.
  // `shade` gives the byte for each of the 64 colours of the palette.
  void set_screen(Byte* screen, const std::array<Byte, 64>& shade);

  // A frame of the console begins: dots are counted from 0 again.
  void begin_frame() { done_ = 0; }
  // Do all dots below `dots`.
  void catch_up(int dots) {
    if (dots > done_) run(dots - done_);
  }
  int dots_done() const { return done_; }

  // Dots from now to the end of the next one whose outcome the CPU must not overtake: the start of
  // vertical blanking, or the dot that an odd frame may leave out.
  int dots_to_event() const;
  // Whether the vertical blanking that has just begun interrupts the CPU; asking takes it.
  bool take_nmi() {
    const bool nmi = nmi_;
    nmi_ = false;
    return nmi;
  }

  // Run until sprite 0 hits (then stop right after that dot) or all dots below `dots` are done.
  void run_to_sprite0_hit(int dots);
  // Dots from now to the end of the one that clears the hit flag; a large number when the next
  // event comes first.
  int dots_to_hit_clear() const;

  Byte read_status();   // $2002
  Byte read_oam() const { return s_.oam[s_.oam_address]; }  // $2004
  Byte read_data();     // $2007
  void write_control(Byte value);      // $2000
  void write_mask(Byte value);         // $2001
  void write_oam_address(Byte value);  // $2003
  void write_oam(Byte value);          // $2004
  void write_scroll(Byte value);       // $2005
  void write_address(Byte value);      // $2006
  void write_data(Byte value);         // $2007
  void oam_dma(const Byte* page);      // $4014, 256 bytes

  // Find the sprites of the line under way now if that was put off (for a canonical save-state).
  void finish_evaluation() {
    if (s_.evaluation_pending) evaluate_sprites();
  }
  bool sprite0_hit() const { return s_.sprite0_hit; }
  // The state was replaced from outside: forget what was derived from it.
  void state_replaced() { sprite_table_valid_ = false; }

 private:
  void run(int dots);
  int run_pre_render(int dots);
  int run_visible(int dots);
  int run_blanking(int dots);
  void end_visible_line();
  int run_whole_lines(int dots);
  int lines_without_hit(int lines);

  bool rendering() const { return s_.show_background && s_.show_sprites; }
  void advance_coarse_x(int steps);
  void increment_y();
  void evaluate_sprites();
  void build_sprite_table();
  // Sprite memory, or what it is searched with, is about to change.
  void before_sprites_change() {
    finish_evaluation();
    sprite_table_valid_ = false;
  }

  Byte read_bus(Address address) const;
  void write_bus(Address address, Byte value);
  const Byte* nametable(Address v) const {
    return s_.vram.data() + (v & nametable_bit_ ? 0x400 : 0);
  }

  struct PatternRow {
    Byte low, high;  // bit 7 is the leftmost pixel
  };
  PatternRow sprite_row(int index) const;
  PatternRow background_row(Address v) const;
  int find_sprite0_hit(int x_begin, int x_end);
  // Up to eight lines being drawn: pixels, and for each tile a byte with a bit for each opaque pixel.
  // A tile may begin up to 7 px before the part of a line that is drawn and end as far after it.
  static constexpr int kMargin = 8;
  static constexpr int kRowBytes = kScreenWidth + 2 * kMargin;
  static constexpr int kRowTiles = kScreenWidth / 8 + 2;
  struct Rows {
    Byte pixels[8][kRowBytes];
    Byte opaque[8][kRowTiles];
  };
  void draw(int x_begin, int x_end, int lines);
  void draw_background(Rows& rows, int tiles_x, int tiles, int lines);
  void draw_sprites(Byte* row, const Byte* opaque, int opaque_x, int x_begin, int x_end);
  void update_shades();

  PpuState& s_;
  const Byte* chr_;
  Address nametable_bit_;  // the bit of v that chooses between the two nametables

  int done_ = 0;
  bool nmi_ = false;
  bool stop_at_hit_ = false;

  // The sprites that the end of each visible line finds, all lines searched in one go.
  struct LineSprites {
    Byte count;
    std::array<Byte, 8> index;
  };
  bool sprite_table_valid_ = false;
  std::array<LineSprites, PpuState::kVisibleLines> sprite_table_{};

  Byte* screen_ = nullptr;
  std::array<Byte, 64> shade_{};
  std::array<Byte, 32> palette_shade_{};  // shade of each palette entry as it is now
  // For each background palette the shades of colours 0, 0^1, 0^2 and 0^1^2^3, in all eight bytes.
  struct PaletteWords {
    std::uint64_t base, low, high, both;
  };
  std::array<PaletteWords, 4> words_{};
};

}  // namespace nes
