// The fields of a save-state in order, and the ranges that make a forged one harmless.
#include "save_state.hpp"

#include <cstring>
#include <string>

#include "byte_stream.hpp"
#include "checksum.hpp"

namespace nes {
namespace {

constexpr char kMagic[4] = {'S', 'M', 'B', 'N'};
constexpr std::uint16_t kVersion = 1;
constexpr std::size_t kHeaderBytes = 4 + 2 + 4 + 4;

// One list for writing and reading.
template <typename Stream, typename State>
void fields(Stream& stream, State& s) {
  stream.field(s.cpu.pc);
  stream.field(s.cpu.sp);
  stream.field(s.cpu.a);
  stream.field(s.cpu.x);
  stream.field(s.cpu.y);
  stream.field(s.cpu.p);
  stream.field(s.wait);
  stream.field(s.odd_cycle);
  for (auto& controller : s.controllers) {
    stream.field(controller.buttons);
    stream.field(controller.shift);
    stream.field(controller.strobe);
  }
  auto& p = s.ppu;
  stream.field(p.line);
  stream.field(p.dot);
  stream.field(p.even_frame);
  stream.field(p.vblank);
  stream.field(p.sprite0_hit);
  stream.field(p.nmi_enabled);
  stream.field(p.tall_sprites);
  stream.field(p.background_page);
  stream.field(p.sprite_page);
  stream.field(p.address_step);
  stream.field(p.show_background);
  stream.field(p.show_sprites);
  stream.field(p.hide_edge_background);
  stream.field(p.hide_edge_sprites);
  stream.field(p.v);
  stream.field(p.t);
  stream.field(p.fine_x);
  stream.field(p.first_write);
  stream.field(p.read_buffer);
  stream.field(p.oam_address);
  stream.field(p.evaluation_pending);
  stream.field(p.sprite_count);
  stream.field(p.sprites);
  stream.field(p.oam);
  stream.field(p.palette);
  stream.field(p.vram);
  stream.field(s.ram);
}

void check(bool ok, const char* what) {
  if (!ok) throw SaveStateError(std::string(what) + " out of range");
}

void check_ranges(const MachineState& s) {
  const PpuState& p = s.ppu;
  check(s.wait >= 0 && s.wait < 2000, "CPU wait");
  check(p.line >= PpuState::kPreRender && p.line <= PpuState::kLastLine, "scanline");
  check(p.dot >= (p.line == PpuState::kPreRender ? 0 : 1) && p.dot <= PpuState::kDotsPerLine, "dot");
  check(p.background_page <= 1 && p.sprite_page <= 1, "pattern table");
  check(p.address_step == 1 || p.address_step == 32, "address step");
  check(p.fine_x < 8, "fine x");
  check(p.sprite_count <= p.sprites.size(), "sprite count");
  for (const Byte sprite : p.sprites) check(sprite < 64, "sprite");
}

std::string hex(std::uint32_t value) {
  static const char* digits = "0123456789abcdef";
  std::string text;
  for (int shift = 28; shift >= 0; shift -= 4) text += digits[value >> shift & 0xF];
  return text;
}

}  // namespace

std::vector<Byte> write_save_state(const MachineState& now, const MachineState* before,
                                   std::uint32_t cartridge) {
  ByteWriter body;
  body.bytes().reserve(2 * sizeof(MachineState));
  fields(body, now);
  body.field(before != nullptr);
  if (before) fields(body, *before);

  ByteWriter out;
  out.bytes().reserve(kHeaderBytes + body.bytes().size());
  out.block(reinterpret_cast<const Byte*>(kMagic), sizeof kMagic);
  out.field(kVersion);
  out.field(cartridge);
  out.field(crc32(body.bytes().data(), body.bytes().size()));
  out.block(body.bytes().data(), body.bytes().size());
  return out.take();
}

SaveState read_save_state(const Byte* data, std::size_t size, std::uint32_t cartridge) {
  try {
    ByteReader in(data, size);
    if (std::memcmp(in.block(sizeof kMagic), kMagic, sizeof kMagic) != 0)
      throw SaveStateError("no \"SMBN\" at the start");
    std::uint16_t version;
    std::uint32_t of_cartridge, checksum;
    in.field(version);
    if (version != kVersion)
      throw SaveStateError("version " + std::to_string(version) + ", not " +
                           std::to_string(kVersion));
    in.field(of_cartridge);
    if (of_cartridge != cartridge)
      throw SaveStateError("of cartridge " + hex(of_cartridge) + ", not " + hex(cartridge));
    in.field(checksum);
    if (checksum != crc32(data + kHeaderBytes, size - kHeaderBytes))
      throw SaveStateError("the checksum does not fit");
    SaveState state;
    fields(in, state.now);
    check_ranges(state.now);
    in.field(state.has_before);
    if (state.has_before) {
      fields(in, state.before);
      check_ranges(state.before);
    }
    if (in.left() != 0)
      throw SaveStateError(std::to_string(in.left()) + " bytes too many");
    return state;
  } catch (const SaveStateError& error) {
    throw SaveStateError("save-state of " + std::to_string(size) + " bytes: " + error.what() +
                         "; expected what save_state() of the native console returned; take the "
                         "state again");
  }
}

}  // namespace nes
