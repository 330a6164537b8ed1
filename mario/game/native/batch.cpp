// Plays episodes: start, step, end, and the next one.
#include "batch.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "byte_stream.hpp"
#include "checksum.hpp"
#include "save_state.hpp"

namespace nes {
namespace {

// gym-super-mario-bros: a larger change of x within a frame is a change of area, not a movement.
constexpr int kMaxXRewardPx = 5;
constexpr int kDeathPenalty = 25;
constexpr int kRewardLimit = 15;
// Above every count of an episode, and far below the range of the type.
constexpr std::int32_t kMaxCounter = 1 << 30;

constexpr char kMagic[4] = {'S', 'M', 'B', 'B'};
constexpr std::uint16_t kVersion = 1;
constexpr std::size_t kHeaderBytes = 4 + 2 + 4;

// The first playable frame of each level, found once in a process and shared by all slots.
std::shared_ptr<const Console::Snapshot> level_start(Console& console, LevelIndex level) {
  static std::mutex mutex;
  static std::map<std::pair<std::uint32_t, LevelIndex>, std::shared_ptr<const Console::Snapshot>>
      starts;
  const std::lock_guard<std::mutex> lock(mutex);
  auto& start = starts[{console.cartridge().identity(), level}];
  if (!start) {
    Game(console).start_level(level);
    start = std::make_shared<const Console::Snapshot>(console.snapshot());
  }
  return start;
}

}  // namespace

void Slot::begin(const Episode& episode, Scratch& scratch) {
  active_ = false;  // until nothing below has thrown
  console_.restore(*(episode.state ? episode.state : level_start(console_, episode.level)));
  level_ = episode.level;
  generator_ = SplitMix64(episode.seed);
  seen_buttons_ = 0;
  steps_ = frames_ = progress_step_ = 0;
  const auto waits = generator_.below(static_cast<std::uint64_t>(settings_.no_op_max_frames) + 1);
  for (std::uint64_t i = 0; i < waits && !game_.is_over(single_level()); ++i) {
    console_.frame(0);
    if (!game_.is_over(single_level())) game_.skip_unplayable(single_level());
  }
  const GameState start = game_.state();
  x_last_ = start.x_px;
  furthest_x_px_ = start.x_px < kMaxXPx ? start.x_px : 0;
  time_last_ = start.time_left;
  console_.redraw(scratch.screens[0].data(), kGreyShades);
  oldest_ = 0;
  area_resize(scratch.screens[0].data(), stack_[0].data());
  for (std::size_t i = 1; i < kStack; ++i) stack_[i] = stack_[0];
  active_ = true;
}

void Slot::step(Byte buttons, Scratch& scratch, const BatchRows& rows, std::size_t row) {
  rows.before[row] = game_.state();
  GameState after{};
  int reward = 0;
  bool over = false;
  std::size_t pictures = 0;
  for (int index = 0; index < settings_.frame_skip && !over; ++index) {
    const double sticky = settings_.sticky_probability;
    if (!(sticky > 0 && generator_.uniform() < sticky)) seen_buttons_ = buttons;
    // Only the last picture of the step is needed, and with max-pooling the one before it.
    const int from_end = settings_.frame_skip - 1 - index;
    bool wanted = from_end == 0 || (settings_.max_pool && from_end == 1);
    Byte* const screen = scratch.screens[pictures].data();
    console_.frame(seen_buttons_, wanted ? screen : nullptr, kGreyShades);
    bool drawn = wanted;
    ++frames_;
    after = game_.state();
    reward += game_reward(after);
    if (after.x_px > furthest_x_px_ && after.x_px < kMaxXPx) {
      furthest_x_px_ = after.x_px;
      progress_step_ = steps_ + 1;
    }
    over = game_.is_over(single_level());
    if (over)
      wanted = true;
    else if (game_.skip_unplayable(single_level()) > 0)
      drawn = false;
    if (wanted && !drawn) console_.redraw(screen, kGreyShades);
    if (wanted) ++pictures;
  }
  ++steps_;
  Byte* const picture = scratch.screens[0].data();
  if (pictures == 2) max_pool(picture, scratch.screens[1].data());
  push_frame(picture);

  const EndReason end = end_of(after, over);
  rows.after[row] = after;
  rows.furthest_x_px[row] = furthest_x_px_;
  rows.end[row] = static_cast<std::int8_t>(end);
  rows.steps[row] = steps_;
  rows.frames[row] = frames_;
  rows.game_reward[row] = reward;
  if (end == EndReason::kRunning) return;
  write_observation(rows.terminal_observations + row * kObservationBytes);
  active_ = false;
  if (queued_) {
    const Episode next = *std::exchange(queued_, std::nullopt);
    begin(next, scratch);
  }
}

// `SuperMarioBrosEnv._get_reward` of one frame, clipped as `NESEnv.step` does.
int Slot::game_reward(const GameState& after) {
  const int moved = after.x_px - x_last_;
  const int ticked = after.time_left - time_last_;
  x_last_ = after.x_px;
  time_last_ = after.time_left;
  int reward = std::abs(moved) <= kMaxXRewardPx ? moved : 0;
  reward += std::min(ticked, 0);
  if (after.dying) reward -= kDeathPenalty;
  return std::clamp(reward, -kRewardLimit, kRewardLimit);
}

EndReason Slot::end_of(const GameState& after, bool over) const {
  if (over) {
    if (single_level() ? after.flag != 0 : game_.is_won()) return EndReason::kFlag;
    return after.time_left > 0 ? EndReason::kDeath : EndReason::kTimeOut;
  }
  const std::int32_t limit = settings_.stuck_limit_steps;
  const bool stuck = limit > 0 && steps_ - progress_step_ >= limit;
  return stuck || steps_ >= settings_.max_steps ? EndReason::kTruncated : EndReason::kRunning;
}

void Slot::push_frame(const Byte* grey) {
  area_resize(grey, stack_[oldest_].data());
  oldest_ = (oldest_ + 1) % kStack;
}

void Slot::write_observation(Byte* out) const {
  for (std::size_t i = 0; i < kStack; ++i)
    std::memcpy(out + i * kFrameBytes, stack_[(oldest_ + i) % kStack].data(), kFrameBytes);
}

namespace {

void write_episode(ByteWriter& out, const Episode& episode, std::uint32_t cartridge) {
  out.field(episode.level);
  out.field(episode.seed);
  out.field(episode.state != nullptr);
  if (!episode.state) return;
  const Console::Snapshot& s = *episode.state;
  const auto state = write_save_state(s.now, s.has_before ? &s.before : nullptr, cartridge);
  out.field(static_cast<std::uint32_t>(state.size()));
  out.block(state.data(), state.size());
}

Console::Snapshot read_console(ByteReader& in, std::uint32_t cartridge) {
  std::uint32_t size;
  in.field(size);
  const SaveState state = read_save_state(in.block(size), size, cartridge);
  return {state.now, state.before, state.has_before};
}

void read_level(ByteReader& in, LevelIndex& level) {
  in.field(level);
  if (level < kWholeGame || level >= kLevels) throw SaveStateError("level out of range");
}

Episode read_episode(ByteReader& in, std::uint32_t cartridge) {
  Episode episode;
  bool has_state;
  read_level(in, episode.level);
  in.field(episode.seed);
  in.field(has_state);
  if (has_state)
    episode.state = std::make_shared<const Console::Snapshot>(read_console(in, cartridge));
  return episode;
}

}  // namespace

std::vector<Byte> Slot::snapshot() const {
  const std::uint32_t cartridge = console_.cartridge().identity();
  ByteWriter body;
  body.field(active_);
  body.field(level_);
  body.field(generator_.state());
  body.field(seen_buttons_);
  for (const std::int32_t counter :
       {steps_, frames_, furthest_x_px_, progress_step_, x_last_, time_last_})
    body.field(counter);
  std::vector<Byte> frames(kObservationBytes);
  write_observation(frames.data());
  body.block(frames.data(), frames.size());
  const auto console = console_.save();
  body.field(static_cast<std::uint32_t>(console.size()));
  body.block(console.data(), console.size());
  body.field(queued_.has_value());
  if (queued_) write_episode(body, *queued_, cartridge);

  ByteWriter out;
  out.block(reinterpret_cast<const Byte*>(kMagic), sizeof kMagic);
  out.field(kVersion);
  out.field(crc32(body.bytes().data(), body.bytes().size()));
  out.block(body.bytes().data(), body.bytes().size());
  return out.take();
}

void Slot::restore(const Byte* data, std::size_t size) {
  try {
    const std::uint32_t cartridge = console_.cartridge().identity();
    ByteReader in(data, size);
    if (std::memcmp(in.block(sizeof kMagic), kMagic, sizeof kMagic) != 0)
      throw SaveStateError("no \"SMBB\" at the start");
    std::uint16_t version;
    std::uint32_t checksum;
    in.field(version);
    if (version != kVersion)
      throw SaveStateError("version " + std::to_string(version) + ", not " +
                           std::to_string(kVersion));
    in.field(checksum);
    if (checksum != crc32(data + kHeaderBytes, size - kHeaderBytes))
      throw SaveStateError("the checksum does not fit");
    bool active, has_queued;
    LevelIndex level;
    std::uint64_t generator;
    Byte seen_buttons;
    std::array<std::int32_t, 6> counters;
    in.field(active);
    read_level(in, level);
    in.field(generator);
    in.field(seen_buttons);
    for (auto& counter : counters) {
      in.field(counter);
      if (counter < 0 || counter > kMaxCounter) throw SaveStateError("counter out of range");
    }
    const Byte* const frames = in.block(kObservationBytes);
    const Console::Snapshot console = read_console(in, cartridge);
    in.field(has_queued);
    std::optional<Episode> queued;
    if (has_queued) queued = read_episode(in, cartridge);
    if (in.left() != 0) throw SaveStateError(std::to_string(in.left()) + " bytes too many");

    // The whole snapshot was read: use it.
    active_ = active;
    level_ = level;
    generator_ = SplitMix64(generator);
    seen_buttons_ = seen_buttons;
    steps_ = counters[0];
    frames_ = counters[1];
    furthest_x_px_ = counters[2];
    progress_step_ = counters[3];
    x_last_ = counters[4];
    time_last_ = counters[5];
    oldest_ = 0;
    for (std::size_t i = 0; i < kStack; ++i)
      std::memcpy(stack_[i].data(), frames + i * kFrameBytes, kFrameBytes);
    console_.restore(console);
    queued_ = std::move(queued);
  } catch (const SaveStateError& error) {
    throw SaveStateError("snapshot of " + std::to_string(size) + " bytes: " + error.what() +
                         "; expected what snapshot() of the native batch returned; resume with "
                         "the console the run was started with");
  }
}

Batch::Batch(std::shared_ptr<const Cartridge> cartridge, std::size_t slots, BatchSettings settings)
    : cartridge_(std::move(cartridge)),
      settings_(std::move(settings)),
      pool_(new ThreadPool(
          std::clamp(settings_.threads, 1, static_cast<int>(std::max<std::size_t>(slots, 1))))),
      errors_(slots) {
  for (std::size_t i = 0; i < slots; ++i)
    slots_.push_back(std::make_unique<Slot>(cartridge_, settings_));
  for (int i = 0; i < pool_->threads(); ++i) scratch_.push_back(std::make_unique<Scratch>());
}

void Batch::begin(std::size_t slot, const Episode& episode, Byte* out) {
  slots_[slot]->queued().reset();
  slots_[slot]->begin(episode, *scratch_[0]);
  slots_[slot]->write_observation(out + slot * kObservationBytes);
}

void Batch::step(const std::int64_t* actions, Byte* out) {
  const auto choices = static_cast<std::int64_t>(settings_.buttons.size());
  playing_.clear();
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    if (!slots_[i]->active()) continue;
    if (actions[i] < 0 || actions[i] >= choices)
      throw ConsoleError("action " + std::to_string(actions[i]) + " for slot " +
                         std::to_string(i) + ": expected 0 to " + std::to_string(choices - 1) +
                         ", an index into the action set");
    playing_.push_back(static_cast<int>(i));
  }
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    rows_.active[i] = slots_[i]->active();
    rows_.end[i] = static_cast<std::int8_t>(EndReason::kRunning);
  }
  pool_->run(static_cast<int>(playing_.size()), [&](int item, int thread) {
    const auto row = static_cast<std::size_t>(playing_[static_cast<std::size_t>(item)]);
    Slot& slot = *slots_[row];
    try {
      const Byte buttons = settings_.buttons[static_cast<std::size_t>(actions[row])];
      slot.step(buttons, *scratch_[static_cast<std::size_t>(thread)], rows_, row);
      slot.write_observation(out + row * kObservationBytes);
    } catch (...) {
      slot.fall_idle();
      errors_[row] = std::current_exception();
    }
  });
  // The first error is thrown; the others are dropped, so that no later step throws them.
  std::exception_ptr first;
  for (auto& error : errors_)
    if (const auto thrown = std::exchange(error, nullptr); thrown && !first) first = thrown;
  if (first) std::rethrow_exception(first);
}

}  // namespace nes
