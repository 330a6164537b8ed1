// Random play, random save and restore, broken save-states and cartridges, under sanitizers.
//
//     fuzz ROM [SECONDS] [SEED]
//
// Built and run by scripts/sanitize.sh. It ends with 1 when a continuation differs, and the
// sanitizers end it when memory or arithmetic goes wrong.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <vector>

#include "batch.hpp"
#include "cartridge.hpp"
#include "checksum.hpp"
#include "console.hpp"

namespace {

using nes::Byte;
using Bytes = std::vector<Byte>;

std::mt19937_64 rng;
std::size_t below(std::size_t n) { return static_cast<std::size_t>(rng() % n); }
Byte any_byte() { return static_cast<Byte>(rng()); }

void require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::exit(1);
}

Byte buttons() {
  static const Byte usual[] = {0x80, 0x81, 0x82, 0x83, 0x40, 0x41, 0x01, 0x20, 0x10, 0x08, 0x00};
  return below(4) == 0 ? any_byte() : usual[below(sizeof usual)];
}

// Writes the checksum that fits over a save-state's body, so that what is behind it gets tested.
void mend_checksum(Bytes& state, std::size_t at, std::size_t header) {
  if (state.size() <= header) return;
  const std::uint32_t crc = nes::crc32(state.data() + header, state.size() - header);
  for (std::size_t i = 0; i < 4; ++i) state[at + i] = static_cast<Byte>(crc >> (8 * i));
}

// A console goes on from its own save-state exactly, in another console too.
void same_continuation(nes::Console& console, nes::Console& other) {
  const Bytes state = console.save();
  other.load(state.data(), state.size());
  std::vector<Byte> a(nes::kScreenPixels), b(nes::kScreenPixels);
  console.redraw(a.data(), nes::kColourShades);
  other.redraw(b.data(), nes::kColourShades);
  require(a == b, "the picture of a restored console differs");
  const std::size_t frames = 1 + below(20);
  for (std::size_t i = 0; i < frames; ++i) {
    const Byte held = buttons();
    console.frame(held, below(2) ? a.data() : nullptr);
    other.frame(held, below(2) ? b.data() : nullptr);
    require(console.ram() == other.ram(), "the memory of a restored console differs");
  }
  console.redraw(a.data(), nes::kColourShades);
  other.redraw(b.data(), nes::kColourShades);
  require(a == b, "the picture after a restore differs");
  require(console.save() == other.save(), "the save-state after a restore differs");
}

void play(const std::shared_ptr<const nes::Cartridge>& cartridge) {
  auto console = std::make_unique<nes::Console>(cartridge);
  auto other = std::make_unique<nes::Console>(cartridge);
  std::vector<Byte> screen(nes::kScreenPixels);
  if (below(4) != 0) nes::Game(*console).start_level(static_cast<int>(below(33)) - 1);
  for (int i = 0; i < 400; ++i) {
    const Byte held = buttons();
    const std::size_t frames = 1 + below(12);
    for (std::size_t f = 0; f < frames; ++f)
      console->frame(held, below(3) == 0 ? screen.data() : nullptr);
    if (below(40) == 0) same_continuation(*console, *other);
    // Wild memory: the program may run away, the console may not.
    if (below(200) == 0)
      for (int n = 0; n < 30; ++n) console->poke(below(nes::kRamBytes), any_byte());
  }
}

// A save-state with some bytes changed is refused or, if its ranges are kept, can be played.
void break_save_state(const std::shared_ptr<const nes::Cartridge>& cartridge) {
  auto console = std::make_unique<nes::Console>(cartridge);
  const std::size_t warm_up = below(200);
  for (std::size_t i = 0; i < warm_up; ++i) console->frame(buttons());
  Bytes state = console->save();
  for (std::size_t n = 1 + below(40); n > 0; --n) state[below(below(2) ? 120 : state.size())] = any_byte();
  if (below(8) == 0) state.resize(below(state.size() + 1));
  if (below(8) == 0) state.push_back(any_byte());
  if (below(8) != 0) {
    const Byte genuine[] = {'S', 'M', 'B', 'N', 1, 0};
    std::copy_n(genuine, std::min(sizeof genuine, state.size()), state.begin());
    const std::uint32_t identity = cartridge->identity();
    for (std::size_t i = 0; i < 4 && 6 + i < state.size(); ++i)
      state[6 + i] = static_cast<Byte>(identity >> (8 * i));
    mend_checksum(state, 10, 14);
  }
  try {
    console->load(state.data(), state.size());
  } catch (const nes::SaveStateError&) {
  }
  std::vector<Byte> screen(nes::kScreenPixels);
  console->redraw(screen.data(), nes::kGreyShades);
  for (int i = 0; i < 60; ++i) console->frame(buttons(), screen.data());
}

void break_cartridge(const Bytes& rom) {
  Bytes image = rom;
  for (std::size_t n = below(6); n > 0; --n) image[below(16)] = any_byte();
  if (below(3) == 0) image.resize(below(image.size() + 1));
  if (below(3) == 0)
    for (int n = 0; n < 2000 && !image.empty(); ++n) image[below(image.size())] = any_byte();
  try {
    nes::Console console(nes::Cartridge::load(image.data(), image.size()));
    std::vector<Byte> screen(nes::kScreenPixels);
    for (int i = 0; i < 120; ++i) console.frame(buttons(), screen.data());
  } catch (const nes::RomError&) {
  }
}

struct Results {
  explicit Results(std::size_t n)
      : before(n), after(n), furthest(n), steps(n), frames(n), reward(n), end(n),
        terminal(n * nes::kObservationBytes), active(new bool[n]()) {}
  nes::BatchRows rows() {
    return {before.data(), after.data(), furthest.data(), end.data(), steps.data(), frames.data(),
            reward.data(), terminal.data(), active.get()};
  }
  std::vector<nes::GameState> before, after;
  std::vector<std::int32_t> furthest, steps, frames, reward;
  std::vector<std::int8_t> end;
  Bytes terminal;
  std::unique_ptr<bool[]> active;
};

void play_batch(const std::shared_ptr<const nes::Cartridge>& cartridge) {
  const std::size_t n = 1 + below(9);
  nes::BatchSettings settings;
  settings.buttons = {0x00, 0x80, 0x81, 0x82, 0x83, 0x01, 0x40};
  settings.frame_skip = static_cast<int>(1 + below(5));
  settings.max_pool = below(2);
  settings.no_op_max_frames = static_cast<std::int64_t>(below(31));
  settings.sticky_probability = below(2) ? 0.25 : 0.0;
  settings.max_steps = static_cast<std::int32_t>(20 + below(200));
  settings.stuck_limit_steps = static_cast<std::int32_t>(below(2) * 30);
  settings.threads = static_cast<int>(1 + below(4));
  nes::Batch batch(cartridge, n, settings);
  Results results(n);
  batch.set_rows(results.rows());
  Bytes out(n * nes::kObservationBytes);
  const auto episode = [&] {
    return nes::Episode{static_cast<nes::LevelIndex>(below(33)) - 1, rng(), nullptr};
  };
  for (std::size_t i = 0; i < n; ++i) batch.begin(i, episode(), out.data());
  std::vector<std::int64_t> actions(n);
  for (int step = 0; step < 250; ++step) {
    for (auto& action : actions) action = static_cast<std::int64_t>(below(settings.buttons.size()));
    for (std::size_t i = 0; i < n; ++i)
      if (below(50) == 0) batch.slot(i).queued() = episode();
    batch.step(actions.data(), out.data());
    if (below(40) == 0) {
      const std::size_t from = below(n), to = below(n);
      Bytes snapshot = batch.slot(from).snapshot();
      if (below(2)) {
        for (std::size_t k = below(10); k > 0; --k) snapshot[below(60)] = any_byte();
        mend_checksum(snapshot, 6, 10);
      }
      try {
        batch.slot(to).restore(snapshot.data(), snapshot.size());
      } catch (const nes::SaveStateError&) {
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: fuzz ROM [SECONDS] [SEED]\n");
    return 2;
  }
  std::ifstream file(argv[1], std::ios::binary);
  const Bytes rom((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const int seconds = argc > 2 ? std::atoi(argv[2]) : 30;
  rng.seed(argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1);
  const auto cartridge = nes::Cartridge::load(rom.data(), rom.size());
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  long rounds = 0;
  do {
    play(cartridge);
    for (int i = 0; i < 20; ++i) break_save_state(cartridge);
    for (int i = 0; i < 5; ++i) break_cartridge(rom);
    play_batch(cartridge);
    ++rounds;
  } while (std::chrono::steady_clock::now() < deadline);
  std::printf("fuzz: %ld rounds in %d s, clean\n", rounds, seconds);
  return 0;
}
