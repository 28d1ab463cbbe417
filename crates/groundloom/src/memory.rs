//! What glibc's allocator is told, so that memory that is free is the system's.

/// Batches of pictures and sorts that spill allocate and free blocks of every size, and glibc, which raises its threshold with every large block that is freed, keeps about as much
/// again as they use. With a fixed threshold large blocks go back to the system at once, for some page faults. Called before any other thread runs.
pub fn give_large_blocks_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes numbers and touches nothing but the allocator's settings; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}

/// Gives the pages back that hold no living block any more: after a long listing of files, which are small blocks between others, tens of megabytes per million of them.
pub fn give_free_pages_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim takes a number, locks the allocator itself and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
