//! The allocator of the process: malloc(3), but for small blocks of great alignment.
//!
//! The runtime keeps three records for each session, of its two sockets and of its task, and
//! aligns them to 128 bytes so that no two of them share a pair of cache lines. malloc(3) leaves a
//! gap of some 110 bytes at each. Here they lie side by side in slabs, which go back to the kernel
//! when they are empty.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Blocks are multiples of this, and aligned to it, bytes.
const STEP: usize = 128;
/// Alignments below this are left to malloc(3), bytes.
const LEAST_ALIGN: usize = 64;
/// Blocks of 1 to so many steps.
const CLASSES: usize = 4;
/// A slab, and its alignment: the slab of a block is found by its address.
const SLAB_BYTES: usize = 64 * 1024;
/// Threads take turns only with those of the same shard.
const SHARDS: usize = 8;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

static POOLS: [Mutex<[Pool; CLASSES]>; SHARDS] = [const {
    Mutex::new(
        [const {
            Pool {
                partial: null_mut(),
            }
        }; CLASSES],
    )
}; SHARDS];

thread_local! {
    /// The shard that this thread takes blocks from.
    static SHARD: Cell<Option<usize>> = const { Cell::new(None) };
}

struct Allocator;

/// Slabs of one shard that have room, of blocks of one size.
struct Pool {
    partial: *mut Slab,
}

/// The first bytes of a slab.
struct Slab {
    shard: usize,
    block_bytes: usize,
    /// Blocks in use.
    used: usize,
    /// From here on no block was ever in use, bytes from the start.
    fresh: usize,
    /// Blocks that were in use; each holds the address of the next.
    free: *mut FreeBlock,
    /// Its neighbours among those with room.
    next: *mut Self,
    previous: *mut Self,
}

struct FreeBlock {
    next: *mut Self,
}

// SAFETY: a pool's slabs are reached only through its mutex.
unsafe impl Send for Pool {}

// SAFETY: a block comes either from malloc(3) or from a slab, as its layout says, and goes back to
// where it came from, since it comes back with the same layout. Blocks of a slab do not overlap:
// each is either in use, in the list of the free, or behind `fresh`.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class(layout) {
            Some(class) => take(class),
            // SAFETY: the caller's promises are passed on.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match class(layout) {
            Some(class) => {
                let block = take(class);
                if !block.is_null() {
                    // SAFETY: the block has at least this many bytes.
                    unsafe { block.write_bytes(0, layout.size()) };
                }
                block
            }
            // SAFETY: the caller's promises are passed on.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match class(layout) {
            // SAFETY: by its layout the block is of a slab, and the caller gives it up.
            Some(class) => unsafe { give_back(block, class) },
            // SAFETY: the caller's promises are passed on.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the size is valid with this alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        if class(layout).is_none() && class(wanted).is_none() {
            // SAFETY: the caller's promises are passed on.
            return unsafe { System.realloc(block, layout, size) };
        }
        // SAFETY: two blocks do not overlap, and both have the bytes that are copied.
        unsafe {
            let moved = self.alloc(wanted);
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(block, layout.size().min(size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

/// Which blocks this layout takes, if any.
fn class(layout: Layout) -> Option<usize> {
    let aligned = (LEAST_ALIGN..=STEP).contains(&layout.align());
    (aligned && (1..=CLASSES * STEP).contains(&layout.size())).then(|| (layout.size() - 1) / STEP)
}

fn lock(shard: usize) -> MutexGuard<'static, [Pool; CLASSES]> {
    POOLS[shard].lock().unwrap_or_else(PoisonError::into_inner)
}

fn own_shard() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    SHARD.get().unwrap_or_else(|| {
        let shard = THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS;
        SHARD.set(Some(shard));
        shard
    })
}

/// A block; null when there is no memory.
fn take(class: usize) -> *mut u8 {
    let shard = own_shard();
    let pool = &mut lock(shard)[class];
    if pool.partial.is_null() {
        let Some(slab) = map_slab() else {
            return null_mut();
        };
        // SAFETY: the memory is new, large enough, and aligned to more than a slab's header needs.
        unsafe {
            slab.write(Slab {
                shard,
                block_bytes: (class + 1) * STEP,
                used: 0,
                fresh: size_of::<Slab>().next_multiple_of(STEP),
                free: null_mut(),
                next: null_mut(),
                previous: null_mut(),
            });
        }
        pool.partial = slab.as_ptr();
    }
    let slab = pool.partial;
    // SAFETY: slabs in the list are mapped and have room, and under this lock nobody else touches
    // them.
    unsafe {
        let block = take_from(slab);
        if (*slab).is_full() {
            pool.unlink(slab);
        }
        block
    }
}

/// # Safety
/// The block came from [`take`] of the same class, and nobody uses it any more.
unsafe fn give_back(block: *mut u8, class: usize) {
    let slab = block
        .map_addr(|address| address & !(SLAB_BYTES - 1))
        .cast::<Slab>();
    // SAFETY: the block is in a slab, which stays mapped while the block is in use, and `shard` is
    // never written again. What else is touched is touched under the lock of the shard. A block has
    // room for an address, and is aligned to more.
    unsafe {
        let mut pools = lock((*slab).shard);
        let pool = &mut pools[class];
        let was_full = (*slab).is_full();
        let block: *mut FreeBlock = block.cast();
        block.write(FreeBlock { next: (*slab).free });
        (*slab).free = block;
        (*slab).used -= 1;
        if was_full {
            pool.link(slab);
        }
        // One is kept, so that a single session that comes and goes maps nothing.
        let others = !((*slab).next.is_null() && (*slab).previous.is_null());
        if (*slab).used == 0 && others {
            pool.unlink(slab);
            drop(pools);
            // No block of it is in use, and no list leads to it any more.
            libc::munmap(slab.cast(), SLAB_BYTES);
        }
    }
}

/// # Safety
/// The slab is mapped, not full, and nobody else touches it.
unsafe fn take_from(slab: *mut Slab) -> *mut u8 {
    // SAFETY: by the promise of the caller. A free block holds the address of the next; a fresh one
    // ends within the slab, since that is not full.
    unsafe {
        (*slab).used += 1;
        let free = (*slab).free;
        if free.is_null() {
            let offset = (*slab).fresh;
            (*slab).fresh += (*slab).block_bytes;
            return slab.cast::<u8>().add(offset);
        }
        (*slab).free = (*free).next;
        free.cast()
    }
}

/// New memory for a slab, aligned to its size.
fn map_slab() -> Option<NonNull<Slab>> {
    // SAFETY: a new private mapping concerns nobody else. Of twice the size, the part that is
    // aligned is kept, and the rest, which nobody knows of, is given back.
    unsafe {
        let mapped = libc::mmap(
            null_mut(),
            2 * SLAB_BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if mapped == libc::MAP_FAILED {
            return None;
        }
        let before = mapped.align_offset(SLAB_BYTES);
        let slab = mapped.byte_add(before);
        if before > 0 {
            libc::munmap(mapped, before);
        }
        libc::munmap(slab.byte_add(SLAB_BYTES), SLAB_BYTES - before);
        NonNull::new(slab.cast())
    }
}

impl Pool {
    /// # Safety
    /// The slab is of this pool, mapped, and not in the list.
    unsafe fn link(&mut self, slab: *mut Slab) {
        // SAFETY: by the promise of the caller; slabs in the list are mapped.
        unsafe {
            (*slab).next = self.partial;
            if !self.partial.is_null() {
                (*self.partial).previous = slab;
            }
        }
        self.partial = slab;
    }

    /// # Safety
    /// The slab is in the list.
    unsafe fn unlink(&mut self, slab: *mut Slab) {
        // SAFETY: by the promise of the caller; slabs in the list are mapped.
        unsafe {
            let (previous, next) = ((*slab).previous, (*slab).next);
            if previous.is_null() {
                self.partial = next;
            } else {
                (*previous).next = next;
            }
            if !next.is_null() {
                (*next).previous = previous;
            }
            (*slab).next = null_mut();
            (*slab).previous = null_mut();
        }
    }
}

impl Slab {
    fn is_full(&self) -> bool {
        self.free.is_null() && self.fresh + self.block_bytes > SLAB_BYTES
    }
}

/// Gives memory that the allocator keeps for later back to the kernel. It takes each arena's lock
/// for a moment: for times of need only.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim(3) may be called at any time, by any thread (MT-Safe). No block that
        // is in use moves.
        let _anything_released = unsafe { libc::malloc_trim(0) };
    }
    // musl gives free pages back by itself, and has no such call.
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(steps: usize) -> Layout {
        Layout::from_size_align(steps * STEP - 8, STEP).expect("a layout")
    }

    /// Fills each block with a pattern of its own, and finds it again when it gives it back.
    fn churn(seed: u64, rounds: usize) {
        let mut random = seed;
        let mut held: Vec<(*mut u8, Layout, u8)> = Vec::new();
        for round in 0..rounds {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let number = usize::try_from(random >> 33).expect("31 bits");
            if number % 5 < 3 && held.len() < 2000 {
                let layout = layout(1 + number / 5 % CLASSES);
                let pattern = u8::try_from(round % 251).expect("small");
                // SAFETY: the layout has a size, and the block its bytes.
                let block = unsafe {
                    let block = ALLOCATOR.alloc(layout);
                    block.write_bytes(pattern, layout.size());
                    block
                };
                assert_eq!(block.align_offset(STEP), 0);
                held.push((block, layout, pattern));
            } else if !held.is_empty() {
                let (block, layout, pattern) = held.swap_remove(number % held.len());
                release(block, layout, pattern);
            }
        }
        for (block, layout, pattern) in held {
            release(block, layout, pattern);
        }
    }

    fn release(block: *mut u8, layout: Layout, pattern: u8) {
        // SAFETY: the block was allocated with this layout, and is given up here.
        unsafe {
            let bytes = std::slice::from_raw_parts(block, layout.size());
            assert!(bytes.iter().all(|b| *b == pattern), "overwritten");
            ALLOCATOR.dealloc(block, layout);
        }
    }

    #[test]
    fn blocks_do_not_overlap_whatever_threads_do() {
        std::thread::scope(|scope| {
            for seed in 0..4 {
                scope.spawn(move || churn(seed, 100_000));
            }
        });
    }

    #[test]
    fn a_block_may_be_given_back_by_another_thread() {
        let layout = layout(2);
        for _ in 0..50 {
            // SAFETY: the layout has a size.
            let blocks: Vec<usize> = (0..600)
                .map(|_| unsafe { ALLOCATOR.alloc(layout) }.expose_provenance())
                .collect();
            let distinct: std::collections::BTreeSet<_> = blocks.iter().collect();
            assert_eq!(distinct.len(), blocks.len());
            let other = std::thread::spawn(move || {
                for block in blocks {
                    let block = std::ptr::with_exposed_provenance_mut(block);
                    // SAFETY: allocated above with this layout, and used by nobody.
                    unsafe { ALLOCATOR.dealloc(block, layout) };
                }
            });
            other.join().expect("no panic");
        }
    }

    #[test]
    fn a_block_that_grows_keeps_its_bytes() {
        // SAFETY: each block has the bytes of the layout that it was last given.
        unsafe {
            let mut now = layout(1);
            let mut block = ALLOCATOR.alloc_zeroed(now);
            assert!((0..now.size()).all(|at| *block.add(at) == 0));
            block.write_bytes(7, now.size());
            for steps in [2, 4, 9, 3] {
                let kept = now.size().min(layout(steps).size());
                block = ALLOCATOR.realloc(block, now, layout(steps).size());
                now = layout(steps);
                assert!((0..kept.min(layout(1).size())).all(|at| *block.add(at) == 7));
            }
            ALLOCATOR.dealloc(block, now);
        }
    }
}
