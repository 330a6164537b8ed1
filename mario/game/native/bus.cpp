// Registers on the CPU's bus (nesdev "PPU registers", "OAM DMA", "Controller reading").
#include "bus.hpp"

#include <algorithm>
#include <array>

namespace nes {
namespace {

constexpr Address kOamDma = 0x4014;
constexpr Address kJoy1 = 0x4016;
constexpr Address kJoy2 = 0x4017;

}  // namespace

Byte Bus::read_register(Address address, int time) {
  if (address >= 0x2000 && address < 0x4000) {
    switch (address & 7) {
      case 2:
        catch_up(time);
        return ppu_.read_status();
      case 4:
        return ppu_.read_oam();
      case 7:
        catch_up(time);
        return ppu_.read_data();
      default:
        return 0;
    }
  }
  if (address == kJoy1) return controllers_[0].read();
  if (address == kJoy2) return controllers_[1].read();
  return 0;  // no open bus, as in nes-py
}

int Bus::write_register(Address address, Byte value, int time) {
  if (address >= 0x2000 && address < 0x4000) {
    catch_up(time);
    switch (address & 7) {
      case 0:
        ppu_.write_control(value);
        break;
      case 1:
        ppu_.write_mask(value);
        break;
      case 3:
        ppu_.write_oam_address(value);
        break;
      case 4:
        ppu_.write_oam(value);
        break;
      case 5:
        ppu_.write_scroll(value);
        break;
      case 6:
        ppu_.write_address(value);
        break;
      case 7:
        ppu_.write_data(value);
        break;
      default:
        break;
    }
    return 0;
  }
  if (address == kOamDma) {
    catch_up(time);
    std::array<Byte, 256> page;
    for (std::size_t i = 0; i < page.size(); ++i)
      page[i] = peek(static_cast<Address>(value << 8 | i));
    ppu_.oam_dma(page.data());
    // 256 reads and 256 writes after one cycle of waiting, and one more on an odd cycle.
    const bool odd_cycle = odd_ ^ ((time + 1) & 1);
    return 513 + odd_cycle;
  }
  if (address == kJoy1) {
    controllers_[0].write_strobe(value);
    controllers_[1].write_strobe(value);
  }
  return 0;
}

int Bus::skip_poll(int time, int period, bool until_hit, int limit) {
  catch_up(time);
  if (ppu_.sprite0_hit() == until_hit || limit <= time) return time;
  const int last = time + (limit - 1 - time) / period * period;
  int dot;  // of this frame, the one that changes the flag
  if (until_hit) {
    ppu_.run_to_sprite0_hit(3 * (last + 1));
    if (!ppu_.sprite0_hit()) return last;
    dot = ppu_.dots_done() - 1;
  } else {
    dot = ppu_.dots_done() + ppu_.dots_to_hit_clear() - 1;
  }
  // The first read not before the cycle that the dot belongs to.
  const int wait = std::max(dot / 3 - time, 0);
  return std::min(last, time + (wait + period - 1) / period * period);
}

}  // namespace nes
