// Runs the parts of the console together for one frame.
#include "console.hpp"

#include <algorithm>
#include <cstring>

#include "save_state.hpp"

namespace nes {

Console::Console(std::shared_ptr<const Cartridge> cartridge)
    : cartridge_(std::move(cartridge)),
      ppu_(*cartridge_, now_.ppu),
      bus_(*cartridge_, now_.ram.data(), now_.controllers.data(), ppu_),
      cpu_(now_.cpu, bus_) {
  reset();
}

void Console::reset() {
  now_ = MachineState{};
  has_before_ = false;
  ppu_.state_replaced();
  cpu_.reset();
}

void Console::frame(Byte buttons, Byte* screen, const Shades& shades) {
  now_.controllers[0].buttons = buttons;
  before_ = now_;
  has_before_ = true;
  ppu_.set_screen(screen, shades);
  run();
}

void Console::redraw(Byte* screen, const Shades& shades) {
  if (!has_before_) {
    std::memset(screen, shades[kBlack], kScreenPixels);
    return;
  }
  const MachineState now = now_;
  now_ = before_;
  ppu_.state_replaced();
  ppu_.set_screen(screen, shades);
  run();
  ppu_.state_replaced();
  now_ = now;  // only this one has what was poked since the frame ended
}

// The CPU runs from event to event of the PPU; the PPU catches up at each, and whenever the CPU
// touches it. Dot d of a frame comes before CPU cycle d / 3.
void Console::run() {
  bus_.begin_frame(now_.odd_cycle);
  ppu_.begin_frame();
  int time = now_.wait;
  for (;;) {
    const int dot = ppu_.dots_done() + ppu_.dots_to_event() - 1;
    const int cycle = dot / 3;
    if (cycle >= kCyclesPerFrame) break;
    time = cpu_.run(time, cycle);
    ppu_.catch_up(dot + 1);
    if (ppu_.take_nmi()) {
      cpu_.nmi();
      time += 7;
    }
  }
  time = cpu_.run(time, kCyclesPerFrame);
  ppu_.catch_up(3 * kCyclesPerFrame);
  now_.wait = time - kCyclesPerFrame;
  now_.odd_cycle ^= kCyclesPerFrame & 1;
}

std::vector<Byte> Console::save() const {
  // Evaluate sprites first, so that equal machines have equal save-states.
  MachineState now = now_, before = before_;
  Ppu(*cartridge_, now.ppu).finish_evaluation();
  Ppu(*cartridge_, before.ppu).finish_evaluation();
  return write_save_state(now, has_before_ ? &before : nullptr, cartridge_->identity());
}

void Console::load(const Byte* data, std::size_t size) {
  const SaveState state = read_save_state(data, size, cartridge_->identity());
  restore({state.now, state.before, state.has_before});
}

}  // namespace nes
