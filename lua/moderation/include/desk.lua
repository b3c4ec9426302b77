-- A desk is a moderator's session. `by` names what it waits with, a WebSocket or an asking request, and is empty while
-- nothing does. It has a seat, since when it waits, while something does and it holds fewer items than it may: in the
-- line of all seats, and in one for each of its skills ("category:language") at its level.
local function read_desk(moderator)
  if desks_read[moderator] then
    return desks_read[moderator]
  end
  local key = prefix .. 'desk:' .. moderator
  local row = redis.call('HMGET', key, 'by', 'kind', 'home', 'skills', 'level', 'holds', 'since', 'version', 'walk')
  seen(key, 'hash')
  if not row[1] then
    return nil
  end
  local desk = {
    name = moderator, key = key, by = row[1], kind = row[2], home = row[3], skills = {}, level = tonumber(row[5]),
    holds = tonumber(row[6]), since = row[7], version = tonumber(row[8]),
    walks = row[9] == '1' or row[9] == '3', partial = row[9] == '3', left = row[9] == '2',
    held = redis.call('ZCARD', prefix .. 'held:' .. moderator),
  }
  seen(prefix .. 'held:' .. moderator, 'zset')
  if not (desk.level and desk.holds and desk.since and desk.version) then
    error('PROTOCOL foreign row in ' .. key)
  end
  for skill in string.gmatch(row[4] or '', '%S+') do
    table.insert(desk.skills, skill)
  end
  desks_read[moderator] = desk
  return desk
end

-- At the end of the line: a wait begins anew with every item.
local function seat(desk)
  desk.since = now
  write('ZADD', seats, now, desk.name)
  for _, skill in ipairs(desk.skills) do
    write('ZADD', prefix .. 'seats:' .. skill .. ':' .. desk.level, now, desk.name)
  end
end

local function stop_walk(desk)
  if desk.walks or desk.left then
    desk.walks, desk.partial, desk.left = false, false, false
    write('ZREM', walks, desk.name)
    write('DEL', prefix .. 'walk:' .. desk.name)
  end
end

-- A request that waits no longer leaves its walk to the next one: else whoever asks without waiting comes no further.
local function leave_walk(desk)
  if desk.walks then
    desk.walks, desk.partial, desk.left = false, false, true
    write('ZREM', walks, desk.name)
  end
end

local function resume_walk(desk)
  if desk.left then
    desk.walks, desk.partial, desk.left = true, true, false
  end
  return desk.walks
end

local function leave_seat(desk)
  if desk.since ~= '' then
    desk.since = ''
    write('ZREM', seats, desk.name)
    for _, skill in ipairs(desk.skills) do
      write('ZREM', prefix .. 'seats:' .. skill .. ':' .. desk.level, desk.name)
    end
  end
end

local function unseat(desk)
  stop_walk(desk)
  leave_seat(desk)
end

-- Written with the rest of the step, as it is then.
local function save_desk(desk)
  desks_changed[desk.name] = desk
  tell(desk.home, desk.name)
end

local function has_room(desk)
  return desk.by ~= '' and desk.held < desk.holds
end

-- Whether what the desk waits with, if it is this, waits no longer.
local function end_wait(desk, by)
  if by == '' or desk.by ~= by then
    return false
  end
  desk.by = ''
  leave_walk(desk)
  leave_seat(desk)
  write('ZREM', asks, desk.name)
  save_desk(desk)
  return true
end
