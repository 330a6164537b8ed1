// Python bindings: mario.game._native.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "batch.hpp"
#include "cartridge.hpp"
#include "console.hpp"
#include "observation.hpp"
#include "palette.hpp"
#include "save_state.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using nes::Byte;

// Each C++ error becomes the class of the same name in mario/errors.py.
void translate_errors(const std::exception_ptr& error, void*) {
  const auto raise = [](const char* name, const char* message) {
    nb::object type = nb::module_::import_("mario.errors").attr(name);
    PyErr_SetString(type.ptr(), message);
  };
  try {
    std::rethrow_exception(error);
  } catch (const nes::RomError& e) {
    raise("RomError", e.what());
  } catch (const nes::SaveStateError& e) {
    raise("SaveStateError", e.what());
  } catch (const nes::ConsoleError& e) {
    raise("ConsoleError", e.what());
  }
}

const Byte* bytes_of(const nb::bytes& bytes) { return reinterpret_cast<const Byte*>(bytes.c_str()); }

nb::bytes to_bytes(const std::vector<Byte>& data) {
  return nb::bytes(reinterpret_cast<const char*>(data.data()), data.size());
}

// The caller's arrays.
template <typename T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

// An array that owns its memory.
auto owned_array(std::unique_ptr<Byte[]> data, std::initializer_list<std::size_t> shape) {
  Byte* const pointer = data.release();
  nb::capsule owner(pointer, [](void* p) noexcept { delete[] static_cast<Byte*>(p); });
  return nb::ndarray<nb::numpy, Byte, nb::c_contig>(pointer, shape, owner);
}

// uint8 (240, 256, 3) from the number of each pixel's colour.
auto rgb_picture(const std::array<Byte, nes::kScreenPixels>& colours) {
  auto out = std::make_unique<Byte[]>(nes::kScreenPixels * 3);
  Byte* p = out.get();
  for (const Byte colour : colours) {
    const std::uint32_t rgb = nes::kPaletteRgb[colour];
    *p++ = static_cast<Byte>(rgb >> 16);
    *p++ = static_cast<Byte>(rgb >> 8);
    *p++ = static_cast<Byte>(rgb);
  }
  return owned_array(std::move(out), {nes::kScreenHeight, nes::kScreenWidth, 3});
}

auto area_resize(const Array<const Byte>& grey) {
  if (grey.ndim() != 2 || grey.shape(0) != nes::kScreenHeight || grey.shape(1) != nes::kScreenWidth)
    throw nes::ConsoleError("a picture of another size: expected uint8 (240, 256)");
  auto out = std::make_unique<Byte[]>(nes::kFrameBytes);
  nes::area_resize(grey.data(), out.get());
  return owned_array(std::move(out), {nes::kFrameSize, nes::kFrameSize});
}

// A console with its picture, which is drawn at the end of a step or when it is read.
class PyConsole {
 public:
  explicit PyConsole(const nb::bytes& rom)
      : console_(nes::Cartridge::load(bytes_of(rom), rom.size())) {}

  void reset() {
    console_.reset();
    drawn_ = false;
  }
  void step(long long buttons, long long frames, bool draw) {
    if (buttons < 0 || buttons > 0xFF || frames < 0)
      throw nes::ConsoleError("step(buttons=" + std::to_string(buttons) + ", frames=" +
                              std::to_string(frames) + "): expected buttons 0-255 and frames >= 0");
    if (frames == 0) return;
    for (long long i = 1; i < frames; ++i) console_.frame(static_cast<Byte>(buttons));
    console_.frame(static_cast<Byte>(buttons), draw ? colours_.data() : nullptr);
    drawn_ = draw;
  }
  void poke(long long address, long long value) {
    if (address < 0 || address >= nes::kRamBytes || value < 0 || value > 0xFF)
      throw nes::ConsoleError("poke(address=" + std::to_string(address) + ", value=" +
                              std::to_string(value) + "): expected address 0-2047, value 0-255");
    console_.poke(static_cast<std::size_t>(address), static_cast<Byte>(value));
  }
  auto screen_rgb() {
    return rgb_picture(colours());
  }
  auto screen_grey() {
    auto out = std::make_unique<Byte[]>(nes::kScreenPixels);
    Byte* p = out.get();
    for (const Byte colour : colours()) *p++ = nes::kGreyShades[colour];
    return owned_array(std::move(out), {nes::kScreenHeight, nes::kScreenWidth});
  }
  nb::bytes save_state() const { return to_bytes(console_.save()); }
  void load_state(const nb::bytes& state) {
    console_.load(bytes_of(state), state.size());
    drawn_ = false;
  }
  const nes::Console& console() const { return console_; }

 private:
  const std::array<Byte, nes::kScreenPixels>& colours() {
    if (!drawn_) {
      console_.redraw(colours_.data(), nes::kColourShades);
      drawn_ = true;
    }
    return colours_;
  }

  nes::Console console_;
  std::array<Byte, nes::kScreenPixels> colours_{};  // number of each pixel's colour
  bool drawn_ = false;
};

// The batch; mario/game/batch/native.py checks shapes and dtypes before it calls.
class PyBatch {
 public:
  PyBatch(const nb::bytes& rom, std::size_t slots, const nb::bytes& buttons, int frame_skip,
          bool max_pool, std::int64_t no_op_max_frames, double sticky_probability,
          std::int32_t max_steps, std::int32_t stuck_limit_steps, int threads)
      : batch_(nes::Cartridge::load(bytes_of(rom), rom.size()), slots,
               {std::vector<Byte>(bytes_of(buttons), bytes_of(buttons) + buttons.size()),
                frame_skip, max_pool, no_op_max_frames, sticky_probability, max_steps,
                stuck_limit_steps, threads}) {}

  // Sets the arrays that steps write their results to, and keeps them alive.
  void attach(Array<std::int32_t> before, Array<std::int32_t> after,
              Array<std::int32_t> furthest_x_px, Array<std::int8_t> end,
              Array<std::int32_t> steps, Array<std::int32_t> frames,
              Array<std::int32_t> game_reward, Array<Byte> terminal_observations,
              Array<bool> active) {
    const std::size_t n = batch_.slots();
    const bool fits = before.size() == 13 * n && after.size() == 13 * n &&
                      furthest_x_px.size() == n && end.size() == n && steps.size() == n &&
                      frames.size() == n && game_reward.size() == n &&
                      terminal_observations.size() == n * nes::kObservationBytes &&
                      active.size() == n;
    if (!fits)
      throw nes::ConsoleError("result arrays that do not fit " + std::to_string(n) +
                              " slots: expected those of BatchStep.empty");
    batch_.set_rows({reinterpret_cast<nes::GameState*>(before.data()),
                     reinterpret_cast<nes::GameState*>(after.data()), furthest_x_px.data(),
                     end.data(), steps.data(), frames.data(), game_reward.data(),
                     terminal_observations.data(), active.data()});
    kept_ = {nb::cast(before), nb::cast(after), nb::cast(furthest_x_px), nb::cast(end),
             nb::cast(steps), nb::cast(frames), nb::cast(game_reward),
             nb::cast(terminal_observations), nb::cast(active)};
  }

  void begin(std::size_t slot, nes::LevelIndex level, std::uint64_t seed,
             const std::optional<nb::bytes>& state, Array<Byte> out) {
    check(slot, out);
    const nes::Episode next = episode(level, seed, state);
    const nb::gil_scoped_release unlocked;
    batch_.begin(slot, next, out.data());
  }
  void queue(std::size_t slot, nes::LevelIndex level, std::uint64_t seed,
             const std::optional<nb::bytes>& state) {
    at(slot).queued() = episode(level, seed, state);
  }
  void clear_queue(std::size_t slot) { at(slot).queued().reset(); }

  void step(Array<const std::int64_t> actions, Array<Byte> out) {
    check(0, out);
    if (actions.size() != batch_.slots() || kept_.empty())
      throw nes::ConsoleError(std::to_string(actions.size()) + " actions: expected " +
                              std::to_string(batch_.slots()) + ", one for each slot");
    const nb::gil_scoped_release unlocked;
    batch_.step(actions.data(), out.data());
  }

  void states(Array<std::int32_t> out) {
    if (out.size() != 13 * batch_.slots()) throw nes::ConsoleError("states: expected (N, 13)");
    auto* rows = reinterpret_cast<nes::GameState*>(out.data());
    for (std::size_t i = 0; i < batch_.slots(); ++i) rows[i] = batch_.slot(i).state();
  }
  nb::bytes ram(std::size_t slot) {
    const auto& ram = at(slot).console().ram();
    return nb::bytes(reinterpret_cast<const char*>(ram.data()), ram.size());
  }
  auto screen_rgb(std::size_t slot) {
    auto colours = std::make_unique<std::array<Byte, nes::kScreenPixels>>();
    at(slot).console().redraw(colours->data(), nes::kColourShades);
    return rgb_picture(*colours);
  }
  nb::bytes console_state(std::size_t slot) { return to_bytes(at(slot).console().save()); }
  nb::bytes snapshot(std::size_t slot) { return to_bytes(at(slot).snapshot()); }
  void restore(std::size_t slot, const nb::bytes& snapshot, Array<Byte> out) {
    check(slot, out);
    at(slot).restore(bytes_of(snapshot), snapshot.size());
    at(slot).write_observation(out.data() + slot * nes::kObservationBytes);
  }

 private:
  nes::Slot& at(std::size_t slot) {
    if (slot >= batch_.slots())
      throw nes::ConsoleError("slot " + std::to_string(slot) + ": expected 0 to " +
                              std::to_string(batch_.slots() - 1));
    return batch_.slot(slot);
  }
  void check(std::size_t slot, const Array<Byte>& out) {
    at(slot);
    if (out.size() != batch_.slots() * nes::kObservationBytes)
      throw nes::ConsoleError("observation buffer of " + std::to_string(out.size()) +
                              " bytes: expected (N, 4, 84, 84)");
  }
  nes::Episode episode(nes::LevelIndex level, std::uint64_t seed,
                       const std::optional<nb::bytes>& state) {
    if (level < nes::kWholeGame || level >= nes::kLevels)
      throw nes::ConsoleError("level " + std::to_string(level) + ": expected -1 to 31");
    nes::Episode next{level, seed, nullptr};
    if (state) {
      nes::SaveState read = nes::read_save_state(bytes_of(*state), state->size(),
                                                 batch_.cartridge().identity());
      next.state = std::make_shared<const nes::Console::Snapshot>(
          nes::Console::Snapshot{read.now, read.before, read.has_before});
    }
    return next;
  }

  nes::Batch batch_;
  std::vector<nb::object> kept_;
};

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The native NES console and the batch of games on it.";
  nb::register_exception_translator(translate_errors);

  m.def("area_resize", &area_resize, "grey"_a,
        "Resize uint8 (240, 256) to uint8 (84, 84): observation.area_resize for the screen's size.");

  nb::class_<PyConsole>(m, "Console")
      .def(nb::init<const nb::bytes&>(), "rom"_a)
      .def("reset", &PyConsole::reset)
      .def("step", &PyConsole::step, "buttons"_a, "frames"_a = 1, "draw"_a = true,
           nb::call_guard<nb::gil_scoped_release>())
      .def("poke", &PyConsole::poke, "address"_a, "value"_a)
      .def_prop_ro("ram",
                   [](nb::handle self) {
                     const auto& console = nb::cast<const PyConsole&>(self).console();
                     return nb::ndarray<nb::numpy, const Byte, nb::shape<nes::kRamBytes>>(
                         console.ram().data(), {nes::kRamBytes}, self);
                   })
      .def("screen_rgb", &PyConsole::screen_rgb)
      .def("screen_grey", &PyConsole::screen_grey)
      .def("save_state", &PyConsole::save_state)
      .def("load_state", &PyConsole::load_state, "state"_a);

  nb::class_<PyBatch>(m, "Batch")
      .def(nb::init<const nb::bytes&, std::size_t, const nb::bytes&, int, bool, std::int64_t,
                    double, std::int32_t, std::int32_t, int>(),
           "rom"_a, "slots"_a, "buttons"_a, "frame_skip"_a, "max_pool"_a, "no_op_max_frames"_a,
           "sticky_probability"_a, "max_steps"_a, "stuck_limit_steps"_a, "threads"_a)
      .def("attach", &PyBatch::attach, "before"_a, "after"_a, "furthest_x_px"_a, "end"_a,
           "steps"_a, "frames"_a, "game_reward"_a, "terminal_observations"_a, "active"_a)
      .def("begin", &PyBatch::begin, "slot"_a, "level"_a, "seed"_a, "state"_a.none(), "out"_a)
      .def("queue", &PyBatch::queue, "slot"_a, "level"_a, "seed"_a, "state"_a.none())
      .def("clear_queue", &PyBatch::clear_queue, "slot"_a)
      .def("step", &PyBatch::step, "actions"_a, "out"_a)
      .def("states", &PyBatch::states, "out"_a)
      .def("ram", &PyBatch::ram, "slot"_a)
      .def("screen_rgb", &PyBatch::screen_rgb, "slot"_a)
      .def("console_state", &PyBatch::console_state, "slot"_a)
      .def("snapshot", &PyBatch::snapshot, "slot"_a)
      .def("restore", &PyBatch::restore, "slot"_a, "snapshot"_a, "out"_a);
}
